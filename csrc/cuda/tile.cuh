// Tiles of the score matrix in registers, fed from shared memory: what score, top-k and hinge have in common.
//
// A block of 16 x 16 threads owns kSide * 16 query rows and as many reference rows; thread (x, y) the pairs of the
// queries y, y + 16, ... and the references x, x + 16, .... Dimensions pass through two buffers, kDepth at a time:
// while one is computed with, the other is filled.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

#ifndef DISSIM_CUDA_ON_HOST
#define DISSIM_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char bytes_of_block[]; \
  type* const name = reinterpret_cast<type*>(bytes_of_block)
#endif

namespace dissim {

constexpr int kThreads = 256, kGrid = 16, kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;

template <class E>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class E>
using Wide = typename WideOf<E>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class E>
__device__ __forceinline__ E narrow(Wide<E> x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double narrow<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// E1: sum + weight |q - r|, one rounding of the difference and one of the rest.
__device__ __forceinline__ float add_term(float weight, float q, float r, float sum) {
  return fmaf(weight, fabsf(q - r), sum);
}
__device__ __forceinline__ double add_term(double weight, double q, double r, double sum) {
  return fma(weight, fabs(q - r), sum);
}

// 16 bytes that are loaded from shared memory at a time.
template <class A>
struct alignas(16) Vector {
  static constexpr int kLanes = 16 / sizeof(A);
  A lane[kLanes];
};

template <class A>
struct Tile {
  static constexpr int kSide = sizeof(A) == 4 ? 8 : 4;
  static constexpr int kRows = kGrid * kSide, kDepth = 32;
  // A row's length in shared memory: with these four extra words, eight threads read eight rows without a conflict.
  static constexpr int kStride = kDepth + Vector<A>::kLanes;
  static constexpr int kStage = 2 * kRows * kStride + kDepth;
  static constexpr int kSharedBytes = 2 * kStage * int(sizeof(A));
};

// Whether rows can be copied 16 bytes at a time, as they are.
template <class E>
bool can_copy(const Rows& rows) {
  return sizeof(E) >= 4 && rows.dim_stride == 1 && rows.row_stride * int64_t(sizeof(E)) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

#ifndef DISSIM_CUDA_ON_HOST
// Copies `bytes` of 16 to shared memory and fills up with zeros; lands at the latest when its group is waited for.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int still_going>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(still_going) : "memory");
}
#endif

// A thread's share of filling a buffer with kRows rows from `first`, kDepth dimensions from d; zeros beyond the matrix.
// Addresses are computed anew each time: registers are what a tile has none of to spare.
template <class E, bool copied>
__device__ __forceinline__ void load_rows(const Rows& rows, int64_t first, int d, int dim, Wide<E>* to) {
  using A = Wide<E>;
  using T = Tile<A>;
  constexpr int lanes = Vector<A>::kLanes, chunks = T::kDepth / lanes, rows_at_once = kThreads / chunks;
  const int row = threadIdx.x / chunks, column = threadIdx.x % chunks * lanes;
  const int rows_left = int(least(rows.rows - first, T::kRows)) - row, dims_left = dim - d - column;
  const int64_t dim_stride = copied ? 1 : rows.dim_stride, step = rows_at_once * rows.row_stride;
  const E* from = static_cast<const E*>(rows.data) + (first + row) * rows.row_stride + (d + column) * dim_stride;
  to += row * T::kStride + column;
#pragma unroll
  for (int i = 0; i < T::kRows / rows_at_once; ++i, from += step, to += rows_at_once * T::kStride) {
    const int real = i * rows_at_once < rows_left ? max(0, min(dims_left, lanes)) : 0;
    if constexpr (copied) {
      copy_async(to, from, real * int(sizeof(A)));
    } else {
      Vector<A> v;
#pragma unroll
      for (int lane = 0; lane < lanes; ++lane) v.lane[lane] = lane < real ? widen(from[lane * dim_stride]) : A(0);
      *reinterpret_cast<Vector<A>*>(to) = v;
    }
  }
}

// sums[i][j] = sum_d weight[d] |query[first_query + y + 16 i][d] - reference[first_reference + x + 16 j][d]|: one sum a
// pair, d ascending, so that every kernel that calls this gets the same bits. Ends with all threads done with `shared`.
template <class E, bool copied>
__device__ __forceinline__ void score_tile(const Rows& query, const Rows& reference, const Wide<E>* weight, int dim,
                                           int64_t first_query, int64_t first_reference, Wide<E>* shared,
                                           Wide<E> (&sums)[Tile<Wide<E>>::kSide][Tile<Wide<E>>::kSide]) {
  using A = Wide<E>;
  using T = Tile<A>;
  const int x = threadIdx.x % kGrid, y = threadIdx.x / kGrid;
#pragma unroll
  for (int i = 0; i < T::kSide; ++i)
#pragma unroll
    for (int j = 0; j < T::kSide; ++j) sums[i][j] = 0;

  const auto load = [&](int d, A* stage) {
    load_rows<E, copied>(query, first_query, d, dim, stage);
    load_rows<E, copied>(reference, first_reference, d, dim, stage + T::kRows * T::kStride);
    if (threadIdx.x < T::kDepth)
      stage[2 * T::kRows * T::kStride + threadIdx.x] = d + threadIdx.x < dim ? weight[d + threadIdx.x] : A(0);
    end_group();
  };
  int now = 0;  // the buffer that is computed with begins here, the other at kStage less that
  load(0, shared);
#pragma unroll 1
  for (int d = 0; d < dim; d += T::kDepth) {
    load(d + T::kDepth, shared + (T::kStage - now));  // beyond the last dimension: zeros that nobody reads
    wait_for_groups<1>();
    __syncthreads();
    const A *const q = shared + now + y * T::kStride, *const r = shared + now + (T::kRows + x) * T::kStride;
    const A* const w = shared + now + 2 * T::kRows * T::kStride;
#pragma unroll 1
    for (int k = 0; k < T::kDepth; k += Vector<A>::kLanes) {
      const auto at = [k](const A* from) { return *reinterpret_cast<const Vector<A>*>(from + k); };
      Vector<A> of_query[T::kSide];
      const Vector<A> of_weight = at(w);
#pragma unroll
      for (int i = 0; i < T::kSide; ++i) of_query[i] = at(q + i * kGrid * T::kStride);
#pragma unroll
      for (int j = 0; j < T::kSide; ++j) {
        const Vector<A> of_reference = at(r + j * kGrid * T::kStride);
#pragma unroll
        for (int i = 0; i < T::kSide; ++i)
#pragma unroll
          for (int lane = 0; lane < Vector<A>::kLanes; ++lane)
            sums[i][j] = add_term(of_weight.lane[lane], of_query[i].lane[lane], of_reference.lane[lane], sums[i][j]);
      }
    }
    __syncthreads();
    now = T::kStage - now;
  }
  wait_for_groups<0>();
  __syncthreads();
}

}  // namespace dissim
