// The sign sums of sign_sums.cuh where few pairs have an upstream gradient (E12: the active pairs of a hinge). Pairs
// without one are skipped, which is exact.
//
// Each side has its own launch. A warp owns one row of that side ("own") and 4 vectors of dimensions per lane; so every
// sum has one owner and a fixed order:
//
//   for each 1024 rows of the other side:
//       row_bits[warp] = 1024 bits: which of these pairs are active
//       for each set bit, ascending:
//           sums += g * sgn(own - other)
//
// Bits of the active matrix are stored per query. For queries a lane reads its 32 bits directly. For references the
// bits of a row are a column of the matrix: a thread reads one byte, with the bits of the block's 8 references, and
// ballots transpose them.
#pragma once

#include "sign_sums.cuh"

namespace dissim {
namespace {

// The active pairs of a hinge (E12), and the upstream gradients of their scores.
template <class A>
struct ActivePairs {
  int64_t queries, references, row_bytes;
  const uint8_t* active;  // [queries, row_bytes], lowest bit first
  const int64_t *query_labels, *reference_labels;
  const A *positive, *negative;  // [queries]

  __device__ __forceinline__ bool is_active(int64_t n, int64_t m) const {
    return active[n * row_bytes + m / 8] >> m % 8 & 1;
  }
  __device__ __forceinline__ bool is_positive(int64_t n, int64_t m) const {
    return query_labels[n] == reference_labels[m];
  }
  // Of a pair, which must be active.
  __device__ __forceinline__ A gradient(int64_t n, int64_t m) const {
    return is_positive(n, m) ? -positive[n] : negative[n];
  }
};

// The sparse kernel is used if at most one of this many pairs is active. It reads both rows of an active pair again, 8
// bytes per dimension. At an assumed 5 TB/s of L2 bandwidth, that takes as long as 16 pairs in a tile of the dense
// kernels.
constexpr int64_t kInverseSparseDensity = 16;

// Counts each query's active pairs and computes their part of the gradient of the bias; a block per query.
template <class A>
__global__ void __launch_bounds__(kThreads)
    count_pairs_kernel(ActivePairs<A> pairs, int64_t* counts, double* bias_grads) {
  __shared__ int64_t warp_counts[2][kWarps];
  const int64_t n = linear_block_id();
  if (n >= pairs.queries) return;
  int64_t positives = 0, all = 0;
  for (int64_t m = threadIdx.x; m < pairs.references; m += kThreads)
    if (pairs.is_active(n, m)) {
      ++all;
      positives += pairs.is_positive(n, m);
    }
  positives = warp_sum(positives);
  all = warp_sum(all);
  if (threadIdx.x % kWarp == 0) {
    warp_counts[0][threadIdx.x / kWarp] = positives;
    warp_counts[1][threadIdx.x / kWarp] = all;
  }
  __syncthreads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    positives += warp_counts[0][warp];
    all += warp_counts[1][warp];
  }
  counts[n] = all;
  bias_grads[n] = double(all - positives) * double(pairs.negative[n]) - double(positives) * double(pairs.positive[n]);
}

// Sets PathFlags::is_sparse from the number of active pairs, and writes the gradient of the bias unless it is null. One
// block.
template <class A>
__global__ void __launch_bounds__(kThreads)
    choose_path_kernel(ActivePairs<A> pairs, const int64_t* counts, const double* bias_grads, PathFlags* path,
                       A* grad_bias) {
  __shared__ int64_t thread_counts[kThreads];
  __shared__ double thread_bias_grads[kThreads];
  int64_t count = 0;
  double bias_grad = 0;
  for (int64_t n = threadIdx.x; n < pairs.queries; n += kThreads) {
    count += counts[n];
    bias_grad += bias_grads[n];
  }
  thread_counts[threadIdx.x] = count;
  thread_bias_grads[threadIdx.x] = bias_grad;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < kThreads; ++i) {
    count += thread_counts[i];
    bias_grad += thread_bias_grads[i];
  }
  path->is_sparse = count <= pairs.queries * pairs.references / kInverseSparseDensity;
  if (grad_bias) *grad_bias = A(bias_grad);
}

// The side whose rows get sums ("own"), and the other side, which is divided into splits.
template <class A>
struct SparseSide {
  const A *own, *other;  // [rows, padded_dim]
  int64_t rows, other_rows, padded_dim;
  int64_t split_rows, splits;  // of the other side
  A factor;  // 1 for sums of sgn(own - other), -1 for sums of sgn(other - own)
  A* sums;  // [splits, rows, padded_dim]
};

// A lane has several vectors of dimensions, so that finding an active pair is worth the work.
template <class A>
struct SparseTile {
  static constexpr int kVectorDims = AlignedVector<A>::kSize, kVectors = 4;
  static constexpr int kWarpVectorDims = kWarp * kVectorDims, kDims = kVectors * kWarpVectorDims;
  static constexpr int kWordBits = 32, kOthers = kWarp * kWordBits;  // other rows at a time: a 32-bit word per lane
};

// Blocks from the fastest to the slowest index: tile of dimensions, split of the other side, 8 own rows (one per warp).
template <class A, bool own_is_query>
__global__ void __launch_bounds__(kThreads, 3)
    active_pairs_kernel(SparseSide<A> s, ActivePairs<A> pairs, const PathFlags* path) {
  using T = SparseTile<A>;
  using V = AlignedVector<A>;
  if (!path->is_sparse) return;
  __shared__ unsigned row_bits[kWarps][kWarp];  // word i of warp w: its row with the other rows 32 i to 32 i + 31
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t dim_tiles = ceil_div(s.padded_dim, T::kDims);
  int64_t index = linear_block_id();
  const int64_t d0 = index % dim_tiles * T::kDims + lane * T::kVectorDims;
  const int64_t split = (index /= dim_tiles) % s.splits, first_row = index / s.splits * kWarps, row = first_row + warp;
  if (first_row >= s.rows) return;
  const int64_t begin = split * s.split_rows, end = min(s.other_rows, begin + s.split_rows);

  V own[T::kVectors], sums[T::kVectors] = {};
#pragma unroll
  for (int i = 0; i < T::kVectors; ++i)
    if (d0 + i * T::kWarpVectorDims < s.padded_dim)
      own[i] = load_vector(s.own + min(row, s.rows - 1) * s.padded_dim + d0 + i * T::kWarpVectorDims);

#pragma unroll 1
  for (int64_t others = begin; others < end; others += T::kOthers) {
    __syncthreads();
    if (own_is_query) {
      const int64_t first = others + lane * T::kWordBits;
      unsigned word = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (row < s.rows && first + 8 * i < end)
          word |= unsigned(pairs.active[row * pairs.row_bytes + first / 8 + i]) << 8 * i;
      if (first < end && end - first < T::kWordBits)
        word &= (1u << (end - first)) - 1;  // bits beyond the end are undefined
      row_bits[warp][lane] = word;
    } else {
#pragma unroll
      for (int i = 0; i < T::kOthers; i += kThreads) {
        const int64_t n = others + i + threadIdx.x;
        const unsigned byte = n < end ? pairs.active[n * pairs.row_bytes + first_row / 8] : 0;
#pragma unroll
        for (int j = 0; j < kWarps; ++j) {
          const unsigned word = __ballot_sync(kAllLanes, byte >> j & 1);
          if (lane == j) row_bits[j][i / kWarp + warp] = word;
        }
      }
    }
    __syncthreads();
    const unsigned word = row < s.rows ? row_bits[warp][lane] : 0;
#pragma unroll 1
    for (unsigned lanes_left = __ballot_sync(kAllLanes, word != 0); lanes_left; lanes_left &= lanes_left - 1) {
      const int source = __ffs(int(lanes_left)) - 1;
#pragma unroll 1
      for (unsigned bits = __shfl_sync(kAllLanes, word, source); bits; bits &= bits - 1) {
        const int64_t other = others + source * T::kWordBits + __ffs(int(bits)) - 1;
        const A g = own_is_query ? pairs.gradient(row, other) : pairs.gradient(other, row);
        const A* const other_values = s.other + other * s.padded_dim + d0;
#pragma unroll
        for (int i = 0; i < T::kVectors; ++i) {
          if (d0 + i * T::kWarpVectorDims >= s.padded_dim) break;
          const V values = load_vector(other_values + i * T::kWarpVectorDims);
#pragma unroll
          for (int k = 0; k < T::kVectorDims; ++k) sums[i].val[k] += g * sign(own[i].val[k], values.val[k]);
        }
      }
    }
  }
  if (row >= s.rows) return;
  A* const to = s.sums + (split * s.rows + row) * s.padded_dim + d0;
#pragma unroll
  for (int i = 0; i < T::kVectors; ++i) {
    if (d0 + i * T::kWarpVectorDims >= s.padded_dim) break;
#pragma unroll
    for (int k = 0; k < T::kVectorDims; ++k) sums[i].val[k] *= s.factor;
    *reinterpret_cast<V*>(to + i * T::kWarpVectorDims) = sums[i];
  }
}

}  // namespace
}  // namespace dissim
