// The micro-kernels of E2: A[n] += sum_m g[n, m] sgn(q_n - r_m) and B[m] += sum_n g[n, m] sgn(q_n - r_m) in one chunk,
// the kLanes dimensions of one vector, stored [rows][lanes]. The sums are in units of kSignUnit.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kTileQueries = 64, kTileColumns = 128;  // a tile of g: 32 KiB of floats, in L2
#if defined(__AVX512F__)
constexpr int kQueries = 8, kChains = 1;
#else
constexpr int kQueries = 4, kChains = 2;
#endif

constexpr int64_t kSpareOfBackward = 8 << 20;  // bytes that a call may take beside three times its rows

// Bytes that a backward pass may take beside its results.
template <class E>
int64_t backward_room(const Rows& query, const Rows& reference, int64_t dim) {
  return 3 * (query.rows + reference.rows) * dim * int64_t(sizeof(E)) + kSpareOfBackward;
}

// Chunks [first, first + count) of all, of some dimensions each.
struct Chunks {
  int64_t first, count;

  static constexpr int64_t kMostDims = 1024;  // at a time: a chunk for each of 64 threads

  // Calls each(chunks) for runs that together are all: as long as fits(count), or of one chunk where none fits.
  template <class Fits, class Each>
  static void each(int64_t all, int64_t dims, const Fits& fits, const Each& each) {
    int64_t count = max(1, min(all, kMostDims / dims));
    while (count > 1 && !fits(count)) count = ceil_div(count, 2);
    for (int64_t first = 0; first < all; first += count) each(Chunks{first, min(count, all - first)});
  }
};

// All pairs of a tile of g [rows][kTileColumns]. `rows` is a multiple of kQueries, the query rows in registers. Both
// sides are packed and `usual`, or to be multiplied by what undoes their scales.
template <class A, bool of_query, bool of_reference, bool usual>
void sign_sums_tile(const A* query, A query_factor, const A* reference, A reference_factor, const A* g, int64_t rows,
                    int64_t columns, A* sums_q, A* sums_r) {
  constexpr int lanes = kLanes<A>;
  for (int64_t n = 0; n < rows; n += kQueries) {
    Vector<A> q[kQueries], sums[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      q[i] = load<A>(query + (n + i) * lanes);
      if (!usual) q[i] *= query_factor;
      if (of_query) sums[i] = load<A>(sums_q + (n + i) * lanes);
    }
    const A* row = g + n * kTileColumns;
#pragma GCC unroll kChains
    for (int64_t m = 0; m < columns; ++m) {
      Vector<A> r = load<A>(reference + m * lanes), sum_r[kChains] = {};
      if (!usual) r *= reference_factor;
      if (of_reference) sum_r[0] = load<A>(sums_r + m * lanes);
      for (int i = 0; i < kQueries; ++i) {
        const Vector<A> s = usual ? sign_of_usual<A>(q[i] - r) : sign<A>(q[i] - r);
        const A* weight = row + i * kTileColumns + m;
        if (of_query) sums[i] = plus_product<A>(sums[i], s, weight);
        if (of_reference) sum_r[i % kChains] = plus_product<A>(sum_r[i % kChains], s, weight);
      }
      if (of_reference) store<A>(sums_r + m * lanes, kChains == 1 ? sum_r[0] : sum_r[0] + sum_r[kChains - 1]);
    }
    if (of_query)
      for (int i = 0; i < kQueries; ++i) store<A>(sums_q + (n + i) * lanes, sums[i]);
  }
}

constexpr int64_t kRowsAhead = 8;  // to fetch: the processor foresees lines of a row, not the next row

// `count` chunks of a row, with 0 past its end or the last row. Adding 0 turns -0 into +0, so that a tie is never -0.
template <class E, int count>
DISSIM_INLINE void load_chunks(const Rows& rows, int64_t batch, int64_t row, int64_t dim, int64_t chunk,
                               Vector<Acc<E>> (&to)[count]) {
  using A = Acc<E>;
  constexpr int lanes = kLanes<A>;
  const int64_t d = chunk * lanes, width = row < rows.rows ? min(count * lanes, dim - d) : 0;
  const E* from = row_of<E>(rows, batch, row) + d * rows.dim_stride;
  if (rows.dim_stride == 1 && width == count * lanes) {
    for (int i = 0; i < count; ++i) {
      __builtin_prefetch(from + kRowsAhead * rows.row_stride + i * lanes);
      to[i] = load_acc<E>(from + i * lanes) + broadcast<A>(0);
    }
  } else {
    A values[count * lanes] = {};
    for (int64_t i = 0; i < width; ++i) values[i] = to_acc(from[i * rows.dim_stride]) + A(0);
    for (int i = 0; i < count; ++i) to[i] = load<A>(values + i * lanes);
  }
}

// `count` rows from `first` on as chunks [begin, end): to[chunk - begin][row][lanes], `stride` elements a chunk.
template <class E>
void pack_chunks(const Rows& rows, int64_t batch, int64_t first, int64_t count, int64_t dim, int64_t begin, int64_t end,
                 Acc<E>* to, int64_t stride) {
  using A = Acc<E>;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Vector<A> v[1];
      load_chunks<E>(rows, batch, first + row, dim, chunk, v);
      store<A>(to + (chunk - begin) * stride + row * kLanes<A>, v[0]);
    }
}

// Which values are usual.
template <class A>
DISSIM_INLINE Integers<A> is_usual(Vector<A> v) {
  constexpr A largest = (sizeof(A) == 4 ? A(0x1p127) : A(0x1p1023)) / kSignScale<A>;
  const Vector<A> size = magnitude<A>(v);
  return (size == 0) | ((size >= kLeastUsual<A>)&(size <= largest));
}
template <class A, int count>
DISSIM_INLINE bool all_usual(const Vector<A> (&v)[count]) {
  Integers<A> all = is_usual<A>(v[0]);
  for (int i = 1; i < count; ++i) all &= is_usual<A>(v[i]);
  return !bits<A>(~all);
}

// Multiplies some packed vectors by kSignScale if all their values are usual. Returns what undoes it: 1 if they are
// not.
template <class A>
A scale_usual(A* packed, int64_t vectors) {
  if (!kUsualIsFaster<A>) return 1;
  Integers<A> all = ~Integers<A>{};
  for (int64_t i = 0; i < vectors * kLanes<A>; i += kLanes<A>) all &= is_usual<A>(load<A>(packed + i));
  if (bits<A>(~all)) return 1;
  for (int64_t i = 0; i < vectors * kLanes<A>; i += kLanes<A>)
    store<A>(packed + i, kSignScale<A> * load<A>(packed + i));
  return 1 / kSignScale<A>;
}

// Whether the signs of two sides may be those of usual values, by what undoes their scales.
template <class A>
bool both_usual(A query_factor, A reference_factor) {
  return !kUsualIsFaster<A> || (query_factor != 1 && reference_factor != 1);
}

}  // namespace
}  // namespace dissim
