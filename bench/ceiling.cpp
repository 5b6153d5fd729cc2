// What a core can do at most with the kernels' own instructions, in registers: the operations of csrc/pair_math.h at
// the width of csrc/cpu/simd.h, in a loop without loads or stores; and the rates at which memory is read and mapped.
// An empty asm statement tells the compiler that an operand may have changed, at no cost, so it can neither hoist nor
// drop the work; 9 or more sums that do not wait for one another fill the pipes.
#include <memory>

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

// A chunk of references packed, and the queries of a block.
struct Packed {
  Packed(int64_t its_rows, int64_t its_columns, int64_t its_dim)
      : rows(its_rows),
        columns(its_columns),
        dim(its_dim),
        width(ceil_div(columns, kPanel<float>) * kPanel<float>),
        values((rows + columns) * dim),
        weight(dim),
        scores((rows + kTileRows) * kBlockColumns),
        from(rows + width),
        memory(bytes(dim, {rows, width, dim})),
        arena(memory),
        scorer(arena, dim, {rows, width, dim}) {
    uint32_t any = 1;  // rows that differ: E7 does not answer for equal ones
    for (int64_t i = 0; i < (rows + columns) * dim; ++i) values[i] = float((any = any * 1664525 + 1013904223) >> 8);
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
#define CEILING extern "C" __attribute__((visibility("default"))) int64_t

// max, fma (E7) for each vector of elements or, off x86, sub, and, fma (E1); returns the number of elements.
CEILING ceiling_score(int64_t steps) {
  constexpr bool maxima = kLeastMaxima < INT64_MAX;
  V query = broadcast<float>(1.5f), weight = broadcast<float>(1e-3f), reference[kColumns], sums[kRows][kColumns] = {};
  for (int j = 0; j < kColumns; ++j) reference[j] = broadcast<float>(0.25f * j);
  for (V& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < kColumns; ++j)
        sums[i][j] += weight * (maxima ? greater<float>(query, reference[j]) : magnitude<float>(query - reference[j]));
    }
  for (auto& row : sums)
    for (V& sum : row) UNKNOWN(sum);
  return steps * kRows * kColumns * kLanes<float>;
}

// The kernels' own register tile, with its loads and stores, of a slice of a panel in L1. Returns the number of
// elements.
CEILING ceiling_tile(int64_t steps) {
  alignas(64) float panel[kSlice * kPanel<float>], query[kSlice * kQueryPanel], weight[kSlice];
  alignas(64) float scores[kTileRows * kPanel<float>] = {};
  for (int64_t i = 0; i < kSlice * kPanel<float>; ++i) panel[i] = float(i % 7);
  for (int64_t i = 0; i < kSlice * kQueryPanel; ++i) query[i] = float(i % 5);
  for (int64_t i = 0; i < kSlice; ++i) weight[i] = float(i % 3);
  const auto tile = reads_in_place() ? max_tile<float, kTileVectors, true> : max_tile<float, kTileVectors, false>;
  for (int64_t step = 0; step < steps; ++step)
    if (kLeastMaxima < INT64_MAX) {
      tile(query, query, panel, panel, weight, kSlice, 32, false, scores);
    } else {
      score_tile<float, kTileVectors>(query, true, kSlice, panel, weight, 0, scores, kPanel<float>);
    }
  return steps * kSlice * kTileRows * kPanel<float>;
}

// The kernels' own blocks of so many queries and a chunk of so many references, or the most there are: tiles out of L2,
// queries packed, sums settled. What a call adds to it is packing references and the result. Returns the number of
// elements.
CEILING ceiling_block(int64_t steps, int64_t rows, int64_t columns, int64_t dim) {
  thread_local std::unique_ptr<Packed> block;
  rows = min(rows, kBlockRows), columns = min(columns, kChunk<float>);
  if (!block || block->rows != rows || block->columns != columns || block->dim != dim) {
    block.reset();  // first, since scratch is given back in order
    block = std::make_unique<Packed>(rows, columns, dim);
  }
  for (int64_t step = 0; step < steps; ++step) {
    block->scorer.set_queries(block->from, 1, block->rows);
    for (int64_t j = 0; j < block->columns; j += kBlockColumns) block->scorer.score(j, block->scores);
  }
  return steps * block->rows * block->columns * dim;
}

// sub, sign, fma, fma for each vector of elements: one sum a row, one a column; returns the number of elements.
CEILING ceiling_backward(int64_t steps) {
  V query = broadcast<float>(1.5f), grad = broadcast<float>(1e-3f), reference[2];
  V of_query[kRows] = {}, of_reference[2][2] = {};
  for (int j = 0; j < 2; ++j) reference[j] = broadcast<float>(0.25f + 2 * j);
  for (V& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < 2; ++j) {
        const V s = sign_of_usual<float>(query - reference[j]);
        of_query[i] += grad * s;
        of_reference[j][i % 2] += grad * s;
      }
    }
  for (V& sum : of_query) UNKNOWN(sum);
  for (auto& column : of_reference)
    for (V& sum : column) UNKNOWN(sum);
  return steps * 2 * kRows * kLanes<float>;
}

template <bool saturating>
static int64_t sad(int64_t steps) {
  Bytes query = Bytes{} + 3, reference[2] = {query + 1, query + 9};
  Partial sums[kRows][2] = {};
  for (Bytes& r : reference) UNKNOWN(r);
  for (int64_t step = 0; step < steps; ++step)
    for (int i = 0; i < kRows; ++i) {
      UNKNOWN(query);  // the next row's
      for (int j = 0; j < 2; ++j) add_sad<saturating>(sums[i][j], query, reference[j]);
    }
  for (auto& row : sums)
    for (Partial& sum : row) UNKNOWN(sum);
  return steps * kRows * 2 * kVectorBytes;
}

// sad, add for each vector of bytes; returns the number of elements.
CEILING ceiling_sad(int64_t steps) { return adds_saturating() ? sad<true>(steps) : sad<false>(steps); }

// Has the system map and clear the pages of a result, as every call that makes one does; returns the number of bytes.
CEILING ceiling_pages(char* result, int64_t bytes) {
  map_output(result, bytes, Parallel{nullptr, 1});
  return bytes;
}

// Reads `count` floats from memory, once; returns the number of bytes.
CEILING ceiling_memory(const float* from, int64_t count) {
  constexpr int streams = 8;
  V sums[streams] = {};
  for (int64_t i = 0; i + streams * kLanes<float> <= count; i += streams * kLanes<float>)
    for (int j = 0; j < streams; ++j) sums[j] += load<float>(from + i + j * kLanes<float>);
  for (V& sum : sums) UNKNOWN(sum);
  return count * int64_t(sizeof(float));
}
