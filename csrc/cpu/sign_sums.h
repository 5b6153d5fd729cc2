// The micro-kernels of E2: A[n] += sum_m g[n, m] sgn(q_n - r_m) and B[m] += sum_n g[n, m] sgn(q_n - r_m) in one chunk,
// the kLanes dimensions of one vector, stored [rows][lanes]. The sums are in units of kSignUnit.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kTileQueries = 64, kTileColumns = 128;  // a tile of g: 32 KiB of floats, in L2
constexpr int kQueries = 4;                               // query rows in registers

// All pairs of a tile of g [rows][kTileColumns]. `rows` is a multiple of kQueries.
template <class A, bool of_query, bool of_reference, bool finite>
void sign_sums_tile(const A* query, const A* reference, const A* g, int64_t rows, int64_t columns, A* sums_q,
                    A* sums_r) {
  constexpr int lanes = kLanes<A>;
  for (int64_t n = 0; n < rows; n += kQueries) {
    Vector<A> q[kQueries], sums[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      q[i] = load<A>(query + (n + i) * lanes);
      if (of_query) sums[i] = load<A>(sums_q + (n + i) * lanes);
    }
    const A* row = g + n * kTileColumns;
#pragma GCC unroll 2
    for (int64_t m = 0; m < columns; ++m) {
      const Vector<A> r = load<A>(reference + m * lanes);
      Vector<A> sum_r[2] = {};  // two chains: one of kQueries would wait for itself
      if (of_reference) sum_r[0] = load<A>(sums_r + m * lanes);
      for (int i = 0; i < kQueries; ++i) {
        const Vector<A> s = finite ? sign_of_finite<A>(q[i] - r) : sign<A>(q[i] - r);
        const Vector<A> weight = broadcast<A>(row[i * kTileColumns + m]);
        if (of_query) sums[i] += weight * s;
        if (of_reference) sum_r[i % 2] += weight * s;
      }
      if (of_reference) store<A>(sums_r + m * lanes, sum_r[0] + sum_r[1]);
    }
    if (of_query)
      for (int i = 0; i < kQueries; ++i) store<A>(sums_q + (n + i) * lanes, sums[i]);
  }
}

constexpr int64_t kRowsAhead = 8;  // to fetch: the processor foresees lines of a row, not the next row

// `count` rows from `first` on as chunks [begin, end): to[chunk - begin][row][lanes], `stride` elements a chunk; rows
// past the end are 0. Adding 0 turns -0 into +0, so that a tie is never -0.
template <class E>
void pack_chunks(const Rows& rows, int64_t batch, int64_t first, int64_t count, int64_t dim, int64_t begin, int64_t end,
                 Wide<E>* to, int64_t stride) {
  using A = Wide<E>;
  constexpr int lanes = kLanes<A>;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t d = chunk * lanes, width = least(lanes, dim - d);
      Vector<A> v = {};
      if (first + row < rows.rows) {
        const E* from = row_of<E>(rows, batch, first + row) + d * rows.dim_stride;
        if (rows.dim_stride == 1 && width == lanes) {
          __builtin_prefetch(from + kRowsAhead * rows.row_stride);
          v = load_wide<E>(from) + broadcast<A>(0);
        } else {
          for (int64_t i = 0; i < width; ++i) v[i] = widen(from[i * rows.dim_stride]) + A(0);
        }
      }
      store<A>(to + (chunk - begin) * stride + row * lanes, v);
    }
}

// Whether the signs of a packed chunk may be those of finite values: all are, or it makes no difference.
template <class A>
bool finite_chunk(const A* chunk, int64_t rows) {
  if (!kFiniteIsFaster<A>) return true;
  Vector<A> residue = {};
  for (int64_t row = 0; row < rows; ++row) {
    const Vector<A> v = load<A>(chunk + row * kLanes<A>);
    residue += v - v;
  }
  return !bits<A>(~(residue == 0));
}

}  // namespace
}  // namespace dissim
