// The micro-kernels of E1, shared by score, top-k and hinge: a register tile of query rows by a panel of references,
// and one query against a few reference rows.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

// Rows by vectors of a register tile. With 16 registers 4 x 2 accumulators, a reference pair, a query, a weight, the
// sign mask and one temporary just fit (6 x 2 spills); with 32 registers twice the columns fit.
constexpr int kTileRows = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
template <class A>
constexpr int kPanel = kTileVectors * kLanes<A>;

// scores[i][j] = bias + sum_d weight[d] |query[i][d] - panel[d][j]|, one running sum a pair, d ascending.
template <class A>
DISSIM_INLINE void score_tile(
    const A* const (&query)[kTileRows], const A* panel, const A* weight, A bias, int64_t dim,
    A (&scores)[kTileRows][kPanel<A>]) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[kTileRows][kTileVectors] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vector<A> w = broadcast<A>(weight[d]), r[kTileVectors];
    for (int j = 0; j < kTileVectors; ++j) r[j] = load<A>(panel + d * kPanel<A> + j * lanes);
    for (int i = 0; i < kTileRows; ++i) {
      Vector<A> q = broadcast<A>(query[i][d]);
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] += w * magnitude<A>(q - r[j]);
    }
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int j = 0; j < kTileVectors; ++j) store<A>(scores[i] + j * lanes, sums[i][j] + broadcast<A>(bias));
}

// Reference rows that one pass over a query serves.
constexpr int kRowGroup = 4;

// scores[i] = bias + sum_d weight[d] |query[d] - reference[i][d]|: lanes are dimensions, for the shapes that are bound
// by reading the references. `stride` is that of the references' dimensions.
template <class E>
DISSIM_INLINE void score_rows(
    const Wide<E>* query, const E* const (&reference)[kRowGroup], int64_t stride, const Wide<E>* weight,
    Wide<E> bias, int64_t dim, Wide<E> (&scores)[kRowGroup]) {
  using A = Wide<E>;
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[kRowGroup] = {};
  int64_t d = 0;
  if (stride == 1)
    for (; d + lanes <= dim; d += lanes) {
      Vector<A> q = load<A>(query + d), w = load<A>(weight + d);
      for (int i = 0; i < kRowGroup; ++i) sums[i] += w * magnitude<A>(q - load_wide<E>(reference[i] + d));
    }
  for (int i = 0; i < kRowGroup; ++i) scores[i] = bias + sum<A>(sums[i]);
  for (; d < dim; ++d)
    for (int i = 0; i < kRowGroup; ++i) {
      A t = query[d] - widen(reference[i][d * stride]);
      scores[i] += weight[d] * (t < 0 ? -t : t);
    }
}

}  // namespace
}  // namespace dissim
