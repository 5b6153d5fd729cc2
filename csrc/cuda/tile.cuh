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
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class E>
using Acc = typename AccOf<E>::type;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class E>
__device__ __forceinline__ E narrow(Acc<E> x);
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

// Whether every entry's rows can be copied 16 bytes at a time, `bytes` being the size of an element.
inline bool copies(const Rows& rows, int bytes) {
  const int64_t strides = (rows.row_stride | rows.batch_stride) * bytes;
  return rows.dim_stride == 1 && strides % 16 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

// Whether a tile can copy a problem's rows and weights as they are: no 16 bytes of them are cut by an end.
template <class E, class Problem>
bool can_copy(const Problem& p) {
  return sizeof(E) >= 4 && copies(p.query, sizeof(E)) && copies(p.reference, sizeof(E)) &&
         (p.dim * int64_t(sizeof(E)) | reinterpret_cast<intptr_t>(p.weight)) % 16 == 0;
}

#ifndef DISSIM_CUDA_ON_HOST
// Copies `bytes` of 16 to shared memory and fills up with zeros; lands at the latest when its group is waited for.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// The same of 16 bytes or none: a predicate takes the place of a number to be computed.
__device__ __forceinline__ void copy_async_if(bool real, void* to, const void* from) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile(
      "{ .reg .pred none; setp.eq.u32 none, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, none; }" ::"r"(address),
      "l"(from), "r"(unsigned(real))
      : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int still_going>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(still_going) : "memory");
}
#endif

// A thread's share of filling buffers with kRows rows from `first`, kDepth dimensions at a time: the same 16 bytes'
// worth of dimensions of every few rows; zeros beyond the matrix. All but a pointer that moves on is computed anew each
// time: registers are what a tile has none of to spare.
template <class E, bool copied>
class RowLoader {
 public:
  using A = Acc<E>;
  using T = Tile<A>;
  static constexpr int kLanes = Vector<A>::kLanes, kChunks = T::kDepth / kLanes, kAtOnce = kThreads / kChunks;

  __device__ __forceinline__ RowLoader(const Rows& rows, int64_t first)
      : dim_stride_(copied ? 1 : rows.dim_stride), step_(kAtOnce * rows.row_stride) {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks * kLanes;
    from_ = static_cast<const E*>(rows.data) + (first + row) * rows.row_stride + column * dim_stride_;
    rows_left_ = int(min(rows.rows - first, T::kRows)) - row;
  }

  // The next dimensions, of which so many are left, to `to`: this thread's place in the first row.
  __device__ __forceinline__ void next(A* to, int dims_left) {
    const E* from = from_;
    const int rows_left = dims_left > 0 ? rows_left_ : 0;
#pragma unroll
    for (int i = 0; i < T::kRows / kAtOnce; ++i, from += step_, to += kAtOnce * T::kStride) {
      if constexpr (copied) {
        copy_async_if(i * kAtOnce < rows_left, to, from);
      } else {
        const int real = i * kAtOnce < rows_left ? min(dims_left, kLanes) : 0;
        Vector<A> v;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) v.lane[lane] = lane < real ? to_acc(from[lane * dim_stride_]) : A(0);
        *reinterpret_cast<Vector<A>*>(to) = v;
      }
    }
    from_ += T::kDepth * dim_stride_;
  }

 private:
  const E* from_;
  int rows_left_;
  const int64_t dim_stride_, step_;
};

// One block a multiprocessor: two would halve the registers, and then the compiler neither reads ahead nor spaces what
// depends on each other (a float32 warp alone stalls for 2.57 clocks an element, here 2.16 of 2.12 slots). So the two
// warps of a scheduler suffice to keep it busy. What another block would have hidden is each stage's barrier and a
// block's beginning and end: some 3 % at 512 dimensions, estimated; slots, and thereby the rest, are 4 % fewer.
constexpr int kTileBlocks = 1;

// sums[i][j] = sum_d weight[d] |query[first_query + y + 16 i][d] - reference[first_reference + x + 16 j][d]|: one sum a
// pair, d ascending, so that every kernel that calls this gets the same bits. Ends with all threads done with `shared`.
template <class E, bool copied>
__device__ __forceinline__ void score_tile(const Rows& query, const Rows& reference, const Acc<E>* weight, int dim,
                                           int64_t first_query, int64_t first_reference, Acc<E>* shared,
                                           Acc<E> (&sums)[Tile<Acc<E>>::kSide][Tile<Acc<E>>::kSide]) {
  using A = Acc<E>;
  using T = Tile<A>;
  constexpr int lanes = Vector<A>::kLanes, chunks = T::kDepth / lanes;
  const int x = threadIdx.x % kGrid, y = threadIdx.x / kGrid;
#pragma unroll
  for (int i = 0; i < T::kSide; ++i)
#pragma unroll
    for (int j = 0; j < T::kSide; ++j) sums[i][j] = 0;

  RowLoader<E, copied> of_queries(query, first_query), of_references(reference, first_reference);
  A* const place = shared + threadIdx.x / chunks * T::kStride + threadIdx.x % chunks * lanes;
  int dims_left = dim - int(threadIdx.x) % chunks * lanes;
  const auto load = [&](int stage) {
    of_queries.next(place + stage, dims_left);
    of_references.next(place + stage + T::kRows * T::kStride, dims_left);
    if (threadIdx.x < chunks) {  // the weights are one row more
      A* const to = place + stage + 2 * T::kRows * T::kStride;
      const A* const from = weight + (dim - dims_left);
      if constexpr (copied) {
        copy_async_if(dims_left > 0, to, from);
      } else {
#pragma unroll
        for (int lane = 0; lane < lanes; ++lane) to[lane] = lane < dims_left ? from[lane] : A(0);
      }
    }
    dims_left -= T::kDepth;
    end_group();
  };
  int now = 0;  // the buffer that is computed with begins here, the other at kStage less that
  load(0);
#pragma unroll 1
  for (int d = 0; d < dim; d += T::kDepth) {
    wait_for_groups<0>();
    // Now this buffer is full, and nobody reads the other any more.
    __syncthreads();
    if (d + T::kDepth < dim) load(T::kStage - now);
    const A *q = shared + now + y * T::kStride, *r = shared + now + (T::kRows + x) * T::kStride;
    const A* w = shared + now + 2 * T::kRows * T::kStride;
    const auto at = [](const A* from) { return *reinterpret_cast<const Vector<A>*>(from); };
#pragma unroll 2
    for (const A* const end = w + T::kDepth; w != end; q += lanes, r += lanes, w += lanes) {
      const Vector<A> of_weight = at(w);
      Vector<A> of_query[T::kSide];
#pragma unroll
      for (int i = 0; i < T::kSide; ++i) of_query[i] = at(q + i * kGrid * T::kStride);
#pragma unroll
      for (int j = 0; j < T::kSide; ++j) {
        const Vector<A> of_reference = at(r + j * kGrid * T::kStride);
#pragma unroll
        for (int i = 0; i < T::kSide; ++i)
#pragma unroll
          for (int lane = 0; lane < lanes; ++lane)
            sums[i][j] = add_term(of_weight.lane[lane], of_query[i].lane[lane], of_reference.lane[lane], sums[i][j]);
      }
    }
    now = T::kStage - now;
  }
  __syncthreads();
}

}  // namespace dissim
