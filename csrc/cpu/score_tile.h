// The micro-kernels of E1, behind scan.h: a register tile of query rows by a panel of references, and one query
// against a few reference rows.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

// Rows by vectors of a register tile: as many as leave registers for a vector of each reference, the weight, a query
// and what is computed.
#if defined(__AVX512F__)
constexpr int kTileRows = 5, kTileVectors = 4;
#elif defined(__aarch64__)
constexpr int kTileRows = 4, kTileVectors = 4;
#else
constexpr int kTileRows = 5, kTileVectors = 2;
#endif
template <class A>
constexpr int kPanel = kTileVectors * kLanes<A>;
// Queries lie in panels too, of as many whole tiles as there is room for.
constexpr int kQueryPanel = 16, kQueryRows = kQueryPanel / kTileRows * kTileRows;
// Dimensions of a panel that stay in L1 for all rows of a block: 32 KiB.
constexpr int64_t kSlice = 32768 / (kTileVectors * kVectorBytes);

// scores[i][j] (+)= sum_d weight[d] |query[d][i] - panel[d][j]| of `dims` dimensions, then + bias, in the first
// `vectors` of a panel: one running sum a pair, d ascending. The call for a tile that `begins` starts it, later ones go
// on with further dimensions. `stride` is that of the scores' rows. Not inlined: a step needs every register.
template <class A, int vectors>
__attribute__((noinline)) void score_tile(const A* query, bool begins, int64_t dims, const A* panel, const A* weight,
                                          A bias, A* scores, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[kTileRows][vectors] = {};
  if (!begins)
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] = load<A>(scores + i * stride + j * lanes);
#pragma GCC unroll 2
  for (int64_t d = 0; d < dims; ++d) {
    const Vector<A> w = broadcast<A>(weight[d]);
    Vector<A> r[vectors];
    for (int j = 0; j < vectors; ++j) r[j] = load<A>(panel + d * kPanel<A> + j * lanes);
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] += w * magnitude<A>(minus<A>(r[j], query + d * kQueryPanel + i));
  }
#pragma GCC unroll kTileRows
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
    for (int j = 0; j < vectors; ++j) store<A>(scores + i * stride + j * lanes, sums[i][j] + broadcast<A>(bias));
}

// Queries that one pass over a reference row serves.
constexpr int kRowQueries = kTileVectors == 4 ? 4 : 2;
// Reference rows that one pass over a query serves: one a lane of 16 bytes of scores.
template <class A>
constexpr int kRowGroup = 16 / sizeof(A);
// Neighbours added up: those of a, then those of b. Two or one such steps make sums of four or two vectors.
DISSIM_INLINE Group<float> pairwise(Group<float> a, Group<float> b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
DISSIM_INLINE Group<double> pairwise(Group<double> a, Group<double> b) {
  return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
}

// scores[k * width + i] = bias + sum_d weight[d] |query[k][d] - reference[i][d]|: lanes are dimensions, for the shapes
// that are bound by reading the references, which are read one after another, in four chains of sums each, to keep
// memory streaming. What lies `ahead` elements behind is fetched: sums hold more instructions than a processor looks
// ahead. `stride` is that of the references' dimensions.
template <class E, int queries>
DISSIM_INLINE void score_rows(const Acc<E>* const* query, const E* const* reference, int64_t stride, int64_t ahead,
                              const Acc<E>* weight, Acc<E> bias, int64_t dim, Acc<E>* scores, int64_t width) {
  using A = Acc<E>;
  constexpr int lanes = kLanes<A>, chains = 4, group = kRowGroup<A>;
  const int64_t whole = stride == 1 ? dim / lanes * lanes : 0;
  Group<A> sums[queries][group];
#pragma GCC unroll 4
  for (int i = 0; i < group; ++i) {
    const E* r = reference[i];
    Vector<A> parts[queries][chains] = {};
    const auto add = [&](int64_t d, int chain) {
      __builtin_prefetch(r + ahead + d);
      const Vector<A> w = load<A>(weight + d), x = load_acc<E>(r + d);
#pragma GCC unroll 4
      for (int k = 0; k < queries; ++k) parts[k][chain] += w * magnitude<A>(load<A>(query[k] + d) - x);
    };
    int64_t d = 0;
    for (; d + chains * lanes <= whole; d += chains * lanes)
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; ++chain) add(d + chain * lanes, chain);
    for (; d < whole; d += lanes) add(d, 0);
#pragma GCC unroll 4
    for (int k = 0; k < queries; ++k) sums[k][i] = fold<A>((parts[k][0] + parts[k][1]) + (parts[k][2] + parts[k][3]));
  }
#pragma GCC unroll 4
  for (int k = 0; k < queries; ++k) {
    A* to = scores + k * width;
    for (int half = group / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) sums[k][i] = pairwise(sums[k][2 * i], sums[k][2 * i + 1]);
    memcpy(to, &sums[k][0], sizeof sums[k][0]);
    for (int64_t d = whole; d < dim; ++d)
      for (int i = 0; i < group; ++i) {
        A t = query[k][d] - to_acc(reference[i][d * stride]);
        to[i] += weight[d] * (t < 0 ? -t : t);
      }
    for (int i = 0; i < group; ++i) to[i] += bias;
  }
}

}  // namespace
}  // namespace dissim
