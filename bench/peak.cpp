// The peak rate of a core for the kernels' own instructions, in registers: the operations of csrc/pair_math.h at the
// width of csrc/cpu/simd.h, in a loop without loads or stores. Also the rates of reading memory and of page faults.
// An empty asm statement (UNKNOWN) tells the compiler that an operand may have changed. It costs nothing, and the
// compiler can neither hoist nor drop the work. Nine or more independent sums fill the pipelines.
#include <memory>

#include "../csrc/cpu/fast_sign.h"
#include "../csrc/cpu/sad.h"
#include "../csrc/cpu/scan.h"

namespace dissim {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kColumns = 4;  // 32 registers
#else
constexpr int kColumns = 2;  // 16 registers
#endif
constexpr int kRows = 5;

#if defined(__x86_64__)
#define UNKNOWN(v) asm volatile("" : "+x"(v))
#if defined(__AVX512F__)
#undef UNKNOWN
#define UNKNOWN(v) asm volatile("" : "+v"(v))
#endif
#elif defined(__aarch64__)
#define UNKNOWN(v) asm volatile("" : "+w"(v))
#else
#define UNKNOWN(v) asm volatile("" : "+m"(v))
#endif

using V = Vector<float>;

// A packed chunk of references, and the queries of a block.
struct Packed {
  Packed(int64_t block_rows, int64_t block_columns, int64_t block_dim)
      : rows(block_rows),
        columns(block_columns),
        dim(block_dim),
        width(ceil_div(columns, kPanel<float>) * kPanel<float>),
        values((rows + columns) * dim),
        weight(dim),
        scores((rows + kTileRows) * kBlockColumns),
        from(rows + width),
        memory(bytes(dim, {rows, width, dim})),
        arena(memory),
        scorer(arena, dim, {rows, width, dim}) {
    uint32_t random = 1;  // the rows differ: the max form (E7) does not score equal ones
    for (int64_t i = 0; i < (rows + columns) * dim; ++i)
      values[i] = float((random = random * 1664525 + 1013904223) >> 8);
    for (int64_t d = 0; d < dim; ++d) weight[d] = d % 3 ? 1e-3f : -1e-3f;
    for (int64_t i = 0; i < rows + width; ++i) from[i] = values + min(i, rows + columns - 1) * dim;
    scorer.set_head(weight, 0);
    scorer.set_references(from + rows, 1, columns);
  }
  static int64_t bytes(int64_t dim, const Blocking& blocking) {
    Arena counted;
    BlockScorer<float>(counted, dim, blocking);
    return counted.used();
  }
  const int64_t rows, columns, dim, width;
  Scratch<float> values, weight, scores;
  Scratch<const float*> from;
  Scratch<char> memory;
  Arena arena;
  BlockScorer<float> scorer;
};

}  // namespace
}  // namespace dissim

using namespace dissim;
#define PEAK extern "C" __attribute__((visibility("default"))) int64_t

// max, fma (max form, E7) per vector of elements or, where that is not used, sub, and, fma (E1). Returns the number of
// elements.
PEAK peak_score(int64_t steps) {
  constexpr bool max_form = kMinMaxFormDim < INT64_MAX;
  V query = broadcast<float>(1.5f), weight = broadcast<float>(1e-3f), reference[kColumns], sums[kRows][kColumns] = {};
  for (int j = 0; j < kColumns; ++j) reference[j] = broadcast<float>(0.25f * j);
  for (V& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < kColumns; ++j)
        sums[i][j] +=
            weight * (max_form ? maximum<float>(query, reference[j]) : magnitude<float>(query - reference[j]));
    }
  for (auto& row : sums)
    for (V& sum : row) UNKNOWN(sum);
  return steps * kRows * kColumns * kLanes<float>;
}

// The kernels' own register tile, with its loads and stores, of kL1Positions of a panel. Returns the number of
// elements.
PEAK peak_tile(int64_t steps) {
  alignas(64) float panel[kL1Positions * kPanel<float>], query[kL1Positions * kQueryPanel], weight[kL1Positions];
  alignas(64) float scores[kTileRows * kPanel<float>] = {};
  for (int64_t i = 0; i < kL1Positions * kPanel<float>; ++i) panel[i] = float(i % 7);
  for (int64_t i = 0; i < kL1Positions * kQueryPanel; ++i) query[i] = float(i % 5);
  for (int64_t i = 0; i < kL1Positions; ++i) weight[i] = float(i % 3);
  constexpr int64_t slice_length = 32;
  const auto tile =
      prefers_broadcast_operand() ? max_tile<float, kTileVectors, true> : max_tile<float, kTileVectors, false>;
  for (int64_t step = 0; step < steps; ++step)
    if (kMinMaxFormDim < INT64_MAX) {
      tile(query, query, panel, panel, weight, kL1Positions, slice_length, false, scores);
    } else {
      score_tile<float, kTileVectors>(query, true, kL1Positions, panel, weight, 0, scores, kPanel<float>);
    }
  return steps * kL1Positions * kTileRows * kPanel<float>;
}

// The kernels' own blocks of a number of queries and a chunk of a number of references, each limited to its maximum:
// register tiles with operands from L2, packing of the queries, and the final scores. A call adds to this the packing
// of the references and the stores of the result. Returns the number of elements.
PEAK peak_block(int64_t steps, int64_t rows, int64_t columns, int64_t dim) {
  thread_local std::unique_ptr<Packed> block;
  rows = min(rows, kBlockRows), columns = min(columns, kMaxChunkColumns<float>);
  if (!block || block->rows != rows || block->columns != columns || block->dim != dim) {
    block.reset();  // first, because scratch memory is freed in the reverse order
    block = std::make_unique<Packed>(rows, columns, dim);
  }
  for (int64_t step = 0; step < steps; ++step) {
    block->scorer.set_queries(block->from, 1, block->rows);
    for (int64_t j = 0; j < block->columns; j += kBlockColumns) block->scorer.score(j, block->scores);
  }
  return steps * block->rows * block->columns * dim;
}

// sub, sign, fma, fma per vector of elements, with one sum per row and one per column. Returns the number of elements.
PEAK peak_backward(int64_t steps) {
  V query = broadcast<float>(1.5f), grad = broadcast<float>(1e-3f), reference[2];
  V row_sums[kRows] = {}, column_sums[2][2] = {};
  for (int j = 0; j < 2; ++j) reference[j] = broadcast<float>(0.25f + 2 * j);
  for (V& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < 2; ++j) {
        const V s = fast_sign<float>(query - reference[j]);
        row_sums[i] += grad * s;
        column_sums[j][i % 2] += grad * s;
      }
    }
  for (V& sum : row_sums) UNKNOWN(sum);
  for (auto& column : column_sums)
    for (V& sum : column) UNKNOWN(sum);
  return steps * 2 * kRows * kLanes<float>;
}

template <bool saturating>
static int64_t sad(int64_t steps) {
  Bytes query = Bytes{} + 3, reference[2] = {query + 1, query + 9};
  SadPartial sums[kRows][2] = {};
  for (Bytes& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < 2; ++j) add_sad<saturating>(sums[i][j], query, reference[j]);
    }
  for (auto& row : sums)
    for (SadPartial& sum : row) UNKNOWN(sum);
  return steps * kRows * 2 * kVectorBytes;
}

// sad, add per vector of bytes. Returns the number of elements.
PEAK peak_sad(int64_t steps) { return prefers_saturating_add() ? sad<true>(steps) : sad<false>(steps); }

// The first-touch page faults of a result, as in every call that makes one. Returns the number of bytes.
PEAK peak_pages(char* result, int64_t bytes) {
  map_output(result, bytes, Parallel{nullptr, 1});
  return bytes;
}

// Reads `count` floats from memory, once. Returns the number of bytes.
PEAK peak_memory(const float* from, int64_t count) {
  constexpr int streams = 8;
  V sums[streams] = {};
  for (int64_t i = 0; i + streams * kLanes<float> <= count; i += streams * kLanes<float>)
    for (int j = 0; j < streams; ++j) sums[j] += load<float>(from + i + j * kLanes<float>);
  for (V& sum : sums) UNKNOWN(sum);
  return count * int64_t(sizeof(float));
}
