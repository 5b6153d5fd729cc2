// A tile of the score matrix in registers, fed from shared memory. score, topk and hinge share it.
//
// A block of 16 x 16 threads computes T x T pairs, T = 16 * kPerThread. Thread (x, y) holds the pairs of the queries
// y, y + 16, y + 32, ... and the references x, x + 16, x + 32, ...:
//
//                   reference
//                     0      1     ...     15   |   16     17    ...     31   |  ...
//   query   0       (0,0)  (1,0)   ...   (15,0) | (0,0)  (1,0)   ...   (15,0) |          (x, y): the thread that holds
//           1       (0,1)  (1,1)   ...   (15,1) | (0,1)  (1,1)   ...   (15,1) |          the pair
//          ...
//          16       (0,0)  (1,0)   ...   (15,0) | (0,0)  (1,0)   ...   (15,0) |
//
// The dimensions pass through two stages of shared memory, kStageDims at a time: cp.async fills one stage while the
// threads compute with the other (double buffering).
//
//   load(stage 0)
//   for d in 0, kStageDims, ..., dim:
//       wait_group; __syncthreads                              this stage is full, the other is no longer read
//       load(other stage)                                      unless this is the last step
//       for every 16 bytes of dimensions in this stage:
//           w = weights, q[i] = this thread's queries, r[j] = its references
//           sums[i][j] += w * |q[i] - r[j]|
//       swap the stages
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"

#ifndef DISSIM_CUDA_ON_HOST
#define DISSIM_DYNAMIC_SHARED(type, name)                               \
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared_bytes)
#endif

namespace dissim {

constexpr int kBlockSide = 16;  // a block has kBlockSide x kBlockSide threads
constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// The accumulator dtype of rows of type E.
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
__device__ __forceinline__ E from_acc(Acc<E> x);
template <>
__device__ __forceinline__ float from_acc<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double from_acc<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_acc<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// sum + weight |q - r| (E1). The difference is rounded once and the fused multiply-add once.
__device__ __forceinline__ float add_term(float weight, float q, float r, float sum) {
  return fmaf(weight, fabsf(q - r), sum);
}
__device__ __forceinline__ double add_term(double weight, double q, double r, double sum) {
  return fma(weight, fabs(q - r), sum);
}

// 16 bytes of values: one load from shared or global memory.
template <class A>
struct alignas(16) AlignedVector {
  static constexpr int kSize = 16 / sizeof(A);
  A val[kSize];
};
template <class A>
__device__ __forceinline__ AlignedVector<A> load_vector(const A* from) {
  return *reinterpret_cast<const AlignedVector<A>*>(from);
}

// Shared memory of one stage: [kRows][kRowStride] queries, the same of references, [kStageDims] weights.
template <class A>
struct Tile {
  static constexpr int kPerThread = sizeof(A) == 4 ? 8 : 4;  // queries of a thread, and references
  static constexpr int kRows = kBlockSide * kPerThread;      // queries of a tile, and references
  static constexpr int kStageDims = 32;
  // 16 bytes of padding per row. Eight threads that read 16 bytes of eight rows then use all 32 banks once.
  static constexpr int kRowStride = kStageDims + AlignedVector<A>::kSize;
  static constexpr int kStageSize = 2 * kRows * kRowStride + kStageDims;  // values
  static constexpr int kSharedBytes = 2 * kStageSize * int(sizeof(A));
};

// Whether the rows can be copied 16 bytes at a time.
inline bool rows_are_16B_aligned(const Rows& rows, int element_bytes) {
  const int64_t strides = (rows.row_stride | rows.batch_stride) * element_bytes;
  return rows.dim_stride == 1 && strides % 16 == 0 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

// Whether cp.async can copy a problem's rows and weights into a tile. A row must also end at a multiple of 16 bytes,
// since every copy is 16 bytes or nothing. Half types are excluded: they are converted to float32 on the way.
template <class E, class Problem>
bool is_16B_aligned(const Problem& p) {
  return sizeof(E) >= 4 && rows_are_16B_aligned(p.query, sizeof(E)) && rows_are_16B_aligned(p.reference, sizeof(E)) &&
         (p.dim * int64_t(sizeof(E)) | reinterpret_cast<intptr_t>(p.weight)) % 16 == 0;
}

#ifndef DISSIM_CUDA_ON_HOST
// Starts a copy of `bytes` <= 16 bytes to shared memory and fills the rest of the 16 with zeros. The copy is complete
// when wait_group has waited for its group.
__device__ __forceinline__ void cp_async(void* to, const void* from, int bytes) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// The same for 16 bytes or none. A predicate takes fewer instructions than a number of bytes.
__device__ __forceinline__ void cp_async_if(bool copy, void* to, const void* from) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile(
      "{ .reg .pred none; setp.eq.u32 none, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, none; }" ::"r"(address),
      "l"(from), "r"(unsigned(copy))
      : "memory");
}
__device__ __forceinline__ void commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are not complete.
template <int pending>
__device__ __forceinline__ void wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif

// Fills stages with kRows rows of a matrix from row `first` on, kStageDims dimensions per call of `next`. Rows and
// dimensions beyond the matrix become 0. All threads of the block take part:
//
//   one pass: kRowsPerPass rows, kChunks chunks of 16 bytes each     thread -> (row = thread / kChunks,
//   a call of `next` makes kRows / kRowsPerPass passes                         chunk = thread % kChunks)
//
// Only one pointer is kept and advanced; the addresses of the passes are recomputed, because registers are scarce.
template <class E, bool use_cp_async>
class RowLoader {
 public:
  using A = Acc<E>;
  using T = Tile<A>;
  static constexpr int kChunkSize = AlignedVector<A>::kSize, kChunks = T::kStageDims / kChunkSize;
  static constexpr int kRowsPerPass = kThreads / kChunks;

  __device__ __forceinline__ RowLoader(const Rows& rows, int64_t first)
      : dim_stride_(use_cp_async ? 1 : rows.dim_stride), pass_stride_(kRowsPerPass * rows.row_stride) {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks * kChunkSize;
    from_ = static_cast<const E*>(rows.data) + (first + row) * rows.row_stride + column * dim_stride_;
    rows_left_ = int(min(rows.rows - first, T::kRows)) - row;
  }

  // Loads the next kStageDims dimensions. `to` is this thread's chunk in the stage's first row; `dims_left` counts the
  // dimensions from that chunk to the end of the matrix.
  __device__ __forceinline__ void next(A* to, int dims_left) {
    const E* from = from_;
    const int rows_left = dims_left > 0 ? rows_left_ : 0;
#pragma unroll
    for (int i = 0; i < T::kRows / kRowsPerPass; ++i, from += pass_stride_, to += kRowsPerPass * T::kRowStride) {
      if constexpr (use_cp_async) {
        cp_async_if(i * kRowsPerPass < rows_left, to, from);
      } else {
        const int valid = i * kRowsPerPass < rows_left ? min(dims_left, kChunkSize) : 0;
        AlignedVector<A> chunk;
#pragma unroll
        for (int k = 0; k < kChunkSize; ++k) chunk.val[k] = k < valid ? to_acc(from[k * dim_stride_]) : A(0);
        *reinterpret_cast<AlignedVector<A>*>(to) = chunk;
      }
    }
    from_ += T::kStageDims * dim_stride_;
  }

 private:
  const E* from_;
  int rows_left_;
  const int64_t dim_stride_, pass_stride_;
};

// One block per SM. With two, a thread would have half of the registers, and the compiler could neither load ahead nor
// separate dependent instructions (a float32 warp alone then takes 2.57 clocks per term; here 2.16, of which 2.12 are
// issue slots). The two warps of each scheduler are enough to keep it busy. What a second block would hide is the
// barrier of each stage and the beginning and end of a block, about 3 % at 512 dimensions (estimated); the larger
// register budget saves 4 % of the issue slots.
constexpr int kTileBlocksPerSM = 1;

// sums[i][j] = sum_d weight[d] |query[first_query + y + 16 i][d] - reference[first_reference + x + 16 j][d]| (E1) for
// thread (x, y). Every pair is one sum in ascending order of d, so all kernels that call this get bit-identical scores.
// When it returns, no thread reads `shared` any more.
template <class E, bool use_cp_async>
__device__ __forceinline__ void score_tile(const Rows& query, const Rows& reference, const Acc<E>* weight, int dim,
                                           int64_t first_query, int64_t first_reference, Acc<E>* shared,
                                           Acc<E> (&sums)[Tile<Acc<E>>::kPerThread][Tile<Acc<E>>::kPerThread]) {
  using A = Acc<E>;
  using T = Tile<A>;
  constexpr int chunk_size = AlignedVector<A>::kSize, chunks = T::kStageDims / chunk_size;
  constexpr int references_offset = T::kRows * T::kRowStride, weights_offset = 2 * references_offset;  // in a stage
  const int x = threadIdx.x % kBlockSide, y = threadIdx.x / kBlockSide;
#pragma unroll
  for (int i = 0; i < T::kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < T::kPerThread; ++j) sums[i][j] = 0;

  RowLoader<E, use_cp_async> query_loader(query, first_query), reference_loader(reference, first_reference);
  A* const slot = shared + threadIdx.x / chunks * T::kRowStride + threadIdx.x % chunks * chunk_size;
  int dims_left = dim - int(threadIdx.x) % chunks * chunk_size;
  const auto load = [&](int stage) {
    query_loader.next(slot + stage, dims_left);
    reference_loader.next(slot + stage + references_offset, dims_left);
    if (threadIdx.x < chunks) {  // the first threads also load the weights, which are one row
      A* const to = slot + stage + weights_offset;
      const A* const from = weight + (dim - dims_left);
      if constexpr (use_cp_async) {
        cp_async_if(dims_left > 0, to, from);
      } else {
#pragma unroll
        for (int k = 0; k < chunk_size; ++k) to[k] = k < dims_left ? from[k] : A(0);
      }
    }
    dims_left -= T::kStageDims;
    commit_group();
  };
  int stage = 0;  // offset of the stage that is read; the other one begins at kStageSize - stage
  load(0);
#pragma unroll 1
  for (int d = 0; d < dim; d += T::kStageDims) {
    wait_group<0>();
    __syncthreads();
    // Now this stage is full, and no thread reads the other one any more.
    if (d + T::kStageDims < dim) load(T::kStageSize - stage);
    const A* query_values = shared + stage + y * T::kRowStride;
    const A* reference_values = shared + stage + (T::kRows + x) * T::kRowStride;
    const A* weights = shared + stage + weights_offset;
#pragma unroll 2
    for (const A* const end = weights + T::kStageDims; weights != end;
         query_values += chunk_size, reference_values += chunk_size, weights += chunk_size) {
      const AlignedVector<A> w = load_vector(weights);
      AlignedVector<A> q[T::kPerThread];
#pragma unroll
      for (int i = 0; i < T::kPerThread; ++i) q[i] = load_vector(query_values + i * kBlockSide * T::kRowStride);
#pragma unroll
      for (int j = 0; j < T::kPerThread; ++j) {
        const AlignedVector<A> r = load_vector(reference_values + j * kBlockSide * T::kRowStride);
#pragma unroll
        for (int i = 0; i < T::kPerThread; ++i)
#pragma unroll
          for (int k = 0; k < chunk_size; ++k) sums[i][j] = add_term(w.val[k], q[i].val[k], r.val[k], sums[i][j]);
      }
    }
    stage = T::kStageSize - stage;
  }
  __syncthreads();
}

}  // namespace dissim
