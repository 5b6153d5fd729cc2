// Batches of matrices, and grids with any number of blocks.
#pragma once

#include "tile.cuh"

namespace dissim {

// The rows of one batch entry.
template <class E>
__device__ __forceinline__ Rows batch_slice(Rows rows, int64_t batch) {
  rows.data = static_cast<const E*>(rows.data) + batch * rows.batch_stride;
  return rows;
}

template <class E>
__device__ __forceinline__ Acc<E> load_element(const Rows& rows, int64_t row, int64_t d) {
  return to_acc(static_cast<const E*>(rows.data)[row * rows.row_stride + d * rows.dim_stride]);
}

// A grid of at least `blocks` blocks. A grid is at most kMaxGridWidth wide; more blocks use several grid rows, and the
// last row may then have blocks without work.
constexpr int64_t kMaxGridWidth = 1 << 30;
inline Grid grid_for(int64_t blocks) {
  const int64_t width = max(1, min(blocks, kMaxGridWidth));
  return {width, ceil_div(blocks, width)};
}
__device__ __forceinline__ int64_t linear_block_id() { return int64_t(blockIdx.y) * gridDim.x + blockIdx.x; }

// The sum over a warp, in every lane. The order of the additions is fixed.
template <class A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

}  // namespace dissim
