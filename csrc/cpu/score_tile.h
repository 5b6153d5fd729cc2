// The micro-kernels of a score by its definition (E1), called by block_scorer.h and scan.h:
//   score_tile: a register tile of query rows by one panel of references; the lanes of a vector are references.
//   score_rows: a few queries by a few reference rows, not packed; the lanes of a vector are dimensions.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

// A register tile has kTileRows queries by kTileVectors vectors of references. That is as many as leave registers for
// one vector of each reference column, the weight, a query and a temporary.
#if defined(__AVX512F__)
constexpr int kTileRows = 5, kTileVectors = 4;
#elif defined(__aarch64__)
constexpr int kTileRows = 4, kTileVectors = 4;
#else
constexpr int kTileRows = 5, kTileVectors = 2;
#endif
// References of a panel [positions][kPanel].
template <class A>
constexpr int kPanel = kTileVectors * kLanes<A>;
// Queries of a panel [positions][kQueryPanel]: kQueryPanelRows of them, whole register tiles; the rest is padding.
constexpr int kQueryPanel = 16, kQueryPanelRows = kQueryPanel / kTileRows * kTileRows;
// Positions of a reference panel that take 32 KiB, so that they stay in the L1 cache for all queries of a block.
constexpr int64_t kL1Positions = 32768 / (kTileVectors * kVectorBytes);

// For query i and reference j of the first `vectors` of a panel:
//   scores[i][j] (+)= sum over d < dims of weight[d] |query[d][i] - panel[d][j]|,  then + bias
// `first` starts the sums at 0; later calls for further dimensions continue them. There is one running sum per pair, in
// ascending d. `stride` is that of the rows of `scores`. Not inlined: the loop needs every register.
template <class A, int vectors>
__attribute__((noinline)) void score_tile(const A* query, bool first, int64_t dims, const A* panel, const A* weight,
                                          A bias, A* scores, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[kTileRows][vectors] = {};
  if (!first)
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] = load<A>(scores + i * stride + j * lanes);
#pragma GCC unroll 2
  for (int64_t d = 0; d < dims; ++d) {
    const Vector<A> w = broadcast<A>(weight[d]);
    Vector<A> r[vectors];
    for (int j = 0; j < vectors; ++j) r[j] = load<A>(panel + d * kPanel<A> + j * lanes);
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] += w * magnitude<A>(subtract<A>(r[j], query + d * kQueryPanel + i));
  }
#pragma GCC unroll kTileRows
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
    for (int j = 0; j < vectors; ++j) store<A>(scores + i * stride + j * lanes, sums[i][j] + broadcast<A>(bias));
}

// Queries that score_rows compares with a reference row while it reads that row once.
constexpr int kRowQueries = kTileVectors == 4 ? 4 : 2;
// Reference rows of one call of score_rows: their scores fill 16 bytes.
template <class A>
constexpr int kRowGroup = 16 / sizeof(A);

// Sums of neighboring lanes: those of a, then those of b.
DISSIM_INLINE Vector128<float> add_neighbors(Vector128<float> a, Vector128<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
DISSIM_INLINE Vector128<double> add_neighbors(Vector128<double> a, Vector128<double> b) {
  return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
}

// For query k < queries and reference i < kRowGroup:
//   scores[k * width + i] = bias + sum_d weight[d] |query[k][d] - reference[i][d]|
// The lanes of a vector are dimensions, in four chains of sums. This is for shapes whose time is that of reading the
// references. They are read one after another, so that memory streams, and are prefetched `prefetch` elements ahead,
// because the four chains hold more instructions than the reorder buffer of a processor. `stride` is that of the
// references' dimensions.
template <class E, int queries>
DISSIM_INLINE void score_rows(const Acc<E>* const* query, const E* const* reference, int64_t stride, int64_t prefetch,
                              const Acc<E>* weight, Acc<E> bias, int64_t dim, Acc<E>* scores, int64_t width) {
  using A = Acc<E>;
  constexpr int lanes = kLanes<A>, chains = 4, group = kRowGroup<A>;
  const int64_t vector_end = stride == 1 ? dim / lanes * lanes : 0;
  Vector128<A> sums[queries][group];
#pragma GCC unroll 4
  for (int i = 0; i < group; ++i) {
    const E* r = reference[i];
    Vector<A> chain_sums[queries][chains] = {};
    const auto add = [&](int64_t d, int chain) {
      __builtin_prefetch(r + prefetch + d);
      const Vector<A> w = load<A>(weight + d), x = load_acc<E>(r + d);
#pragma GCC unroll 4
      for (int k = 0; k < queries; ++k) chain_sums[k][chain] += w * magnitude<A>(load<A>(query[k] + d) - x);
    };
    int64_t d = 0;
    for (; d + chains * lanes <= vector_end; d += chains * lanes)
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; ++chain) add(d + chain * lanes, chain);
    for (; d < vector_end; d += lanes) add(d, 0);
#pragma GCC unroll 4
    for (int k = 0; k < queries; ++k)
      sums[k][i] = fold<A>((chain_sums[k][0] + chain_sums[k][1]) + (chain_sums[k][2] + chain_sums[k][3]));
  }
#pragma GCC unroll 4
  for (int k = 0; k < queries; ++k) {
    A* to = scores + k * width;
    // log2(group) additions of neighbors leave one sum per reference.
    for (int half = group / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) sums[k][i] = add_neighbors(sums[k][2 * i], sums[k][2 * i + 1]);
    memcpy(to, &sums[k][0], sizeof sums[k][0]);
    for (int64_t d = vector_end; d < dim; ++d)
      for (int i = 0; i < group; ++i) {
        A t = query[k][d] - to_acc(reference[i][d * stride]);
        to[i] += weight[d] * (t < 0 ? -t : t);
      }
    for (int i = 0; i < group; ++i) to[i] += bias;
  }
}

}  // namespace
}  // namespace dissim
