// The backward pass divides the dimensions into blocks. A block of the dense kernels is one vector: kLanes dimensions.
// A block of the sparse kernels is a few vectors. Rows are packed block by block, [dim blocks][rows][dims of a block],
// so that a kernel reads one block of many rows as contiguous memory.
//
// Dimensions do not depend on one another in E2. So each thread owns some blocks, no two threads add to the same
// number, and where memory is short the blocks are processed in several passes.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kBackwardSpareBytes = 8 << 20;

// The most bytes that a backward pass may allocate in addition to its results (dissim.h).
template <class E>
int64_t backward_memory_budget(const Rows& query, const Rows& reference, int64_t dim) {
  return 3 * (query.rows + reference.rows) * dim * int64_t(sizeof(E)) + kBackwardSpareBytes;
}

// Blocks [first, first + count): those of one pass.
struct DimBlocks {
  int64_t first, count;

  static constexpr int64_t kMaxDims = 1024;  // of a pass: one vector of floats for each of 64 threads

  // Divides `all` blocks of `block_dims` dimensions into passes and calls run(blocks) for each. The number of blocks of
  // a pass is halved until fits(count) holds or it is 1.
  template <class Fits, class Run>
  static void for_each_pass(int64_t all, int64_t block_dims, const Fits& fits, const Run& run) {
    int64_t count = max(1, min(all, kMaxDims / block_dims));
    while (count > 1 && !fits(count)) count = ceil_div(count, 2);
    for (int64_t first = 0; first < all; first += count) run(DimBlocks{first, min(count, all - first)});
  }
};

// Rows ahead to prefetch. The hardware prefetcher follows the cache lines of one row but not the step to the next row.
constexpr int64_t kPrefetchRows = 8;

// `count` vectors of a row from vector `first_vector` on; 0 past the last dimension and past the last row. Adding 0
// turns -0 into +0, as the fast sign requires.
template <class E, int count>
DISSIM_INLINE void load_vectors(const Rows& rows, int64_t batch, int64_t row, int64_t dim, int64_t first_vector,
                                Vector<Acc<E>> (&to)[count]) {
  using A = Acc<E>;
  constexpr int lanes = kLanes<A>;
  const int64_t d = first_vector * lanes, width = row < rows.rows ? min(count * lanes, dim - d) : 0;
  const E* from = row_of<E>(rows, batch, row) + d * rows.dim_stride;
  if (rows.dim_stride == 1 && width == count * lanes) {
    for (int i = 0; i < count; ++i) {
      __builtin_prefetch(from + kPrefetchRows * rows.row_stride + i * lanes);
      to[i] = load_acc<E>(from + i * lanes) + broadcast<A>(0);
    }
  } else {
    A values[count * lanes] = {};
    for (int64_t i = 0; i < width; ++i) values[i] = to_acc(from[i * rows.dim_stride]) + A(0);
    for (int i = 0; i < count; ++i) to[i] = load<A>(values + i * lanes);
  }
}

// Packs vectors [begin, end) of rows [first_row, first_row + count): to[vector - begin][row][lanes], with `stride`
// elements from one vector to the next.
template <class E>
void pack_vectors(const Rows& rows, int64_t batch, int64_t first_row, int64_t count, int64_t dim, int64_t begin,
                  int64_t end, Acc<E>* to, int64_t stride) {
  using A = Acc<E>;
  for (int64_t row = 0; row < count; ++row)
    for (int64_t vector = begin; vector < end; ++vector) {
      Vector<A> v[1];
      load_vectors<E>(rows, batch, first_row + row, dim, vector, v);
      store<A>(to + (vector - begin) * stride + row * kLanes<A>, v[0]);
    }
}

}  // namespace
}  // namespace dissim
