// Batches of matrices: an entry's rows, and a grid with a block for each of any number of tasks.
#pragma once

#include "tile.cuh"

namespace dissim {

template <class E>
__device__ __forceinline__ Rows entry_of(Rows rows, int64_t batch) {
  rows.data = static_cast<const E*>(rows.data) + batch * rows.batch_stride;
  return rows;
}

template <class E>
__device__ __forceinline__ Acc<E> element_of(const Rows& rows, int64_t row, int64_t d) {
  return to_acc(static_cast<const E*>(rows.data)[row * rows.row_stride + d * rows.dim_stride]);
}

// At least `tasks` blocks, none for none; more than a grid is wide lie in several rows of it.
inline Grid grid_of(int64_t tasks) {
  const int64_t width = max(1, min(tasks, 1 << 30));
  return {width, ceil_div(tasks, width)};
}
__device__ __forceinline__ int64_t task_of_block() { return int64_t(blockIdx.y) * gridDim.x + blockIdx.x; }

// The sum of a warp's values, the same in every lane, in a fixed order.
template <class A>
__device__ __forceinline__ A sum_of_warp(A x) {
#pragma unroll
  for (int half = kWarp / 2; half; half /= 2) x += __shfl_xor_sync(kAll, x, half);
  return x;
}

}  // namespace dissim
