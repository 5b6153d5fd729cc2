// The sums of signs of sign_sums.cuh where few pairs have an upstream gradient: a warp has a row of one side and works
// off its active pairs alone, one after another in ascending order. Each side goes on its own, so a sum has one owner.
#pragma once

#include "sign_sums.cuh"

namespace dissim {
namespace {

// The active pairs of a hinge (E12), and the upstream gradients of their scores.
template <class A>
struct ActivePairs {
  int64_t queries, references, row_bytes;
  const uint8_t* active;
  const int64_t *query_labels, *reference_labels;
  const A *positive, *negative;  // [queries]

  __device__ __forceinline__ bool is_active(int64_t n, int64_t m) const {
    return active[n * row_bytes + m / 8] >> m % 8 & 1;
  }
  __device__ __forceinline__ bool is_positive(int64_t n, int64_t m) const {
    return query_labels[n] == reference_labels[m];
  }
  // Of an active pair.
  __device__ __forceinline__ A gradient(int64_t n, int64_t m) const {
    return is_positive(n, m) ? -positive[n] : negative[n];
  }
};

// At most one of so many pairs is few: of an active one the rows are read anew, 8 bytes a dimension for both sides'
// sums, which at 5 TB/s of an L2, assumed, takes as long as 16 pairs take that share a tile.
constexpr int64_t kFewPairs = 16;

// A block for each query: its active pairs and their part of the gradient of the bias.
template <class A>
__global__ void __launch_bounds__(kThreads) count_pairs_kernel(ActivePairs<A> pairs, int64_t* counts, double* biases) {
  __shared__ int64_t of_warps[2][kWarps];
  const int64_t n = task_of_block();
  if (n >= pairs.queries) return;
  int64_t positives = 0, all = 0;
  for (int64_t m = threadIdx.x; m < pairs.references; m += kThreads)
    if (pairs.is_active(n, m)) {
      ++all;
      positives += pairs.is_positive(n, m);
    }
  positives = sum_of_warp(positives);
  all = sum_of_warp(all);
  if (threadIdx.x % kWarp == 0) {
    of_warps[0][threadIdx.x / kWarp] = positives;
    of_warps[1][threadIdx.x / kWarp] = all;
  }
  __syncthreads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    positives += of_warps[0][warp];
    all += of_warps[1][warp];
  }
  counts[n] = all;
  biases[n] = double(all - positives) * double(pairs.negative[n]) - double(positives) * double(pairs.positive[n]);
}

// One block: whether these are few pairs, and the gradient of the bias where it is wanted.
template <class A>
__global__ void __launch_bounds__(kThreads)
    choose_route_kernel(ActivePairs<A> pairs, const int64_t* counts, const double* biases, Route* route, A* grad_bias) {
  __shared__ int64_t of_threads[kThreads];
  __shared__ double biases_of_threads[kThreads];
  int64_t count = 0;
  double bias = 0;
  for (int64_t n = threadIdx.x; n < pairs.queries; n += kThreads) {
    count += counts[n];
    bias += biases[n];
  }
  of_threads[threadIdx.x] = count;
  biases_of_threads[threadIdx.x] = bias;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < kThreads; ++i) {
    count += of_threads[i];
    bias += biases_of_threads[i];
  }
  route->few_pairs = count <= pairs.queries * pairs.references / kFewPairs;
  if (grad_bias) *grad_bias = A(bias);
}

// A side whose rows have sums: in splits of the other side, of so many rows.
template <class A>
struct OwnSide {
  const A *own, *other;  // [rows, depth]
  int64_t rows, other_rows, depth, split_rows, splits;
  A factor;  // 1 for sums of sgn(own - other), -1 for those of sgn(other - own)
  A* sums;   // [splits, rows, depth]
};

// Dimensions of a warp: some vectors, so that the look for active pairs serves many.
template <class A>
struct SparseTile {
  static constexpr int kLanes = Vector<A>::kLanes, kVectors = 4, kStep = kWarp * kLanes, kDims = kVectors * kStep;
  static constexpr int kOthers = kWarp * 32;  // of which a warp holds the bits
};

// A task is a tile of dimensions, a share of the other side and a row for each warp. words[w][i] has the bits of warp
// w's row for the 32 others from 32 i on.
template <class A, bool of_query>
__global__ void __launch_bounds__(kThreads, 3)
    active_pairs_kernel(OwnSide<A> s, ActivePairs<A> pairs, const Route* route) {
  using T = SparseTile<A>;
  using V = Vector<A>;
  if (!route->few_pairs) return;
  __shared__ unsigned words[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tiles = ceil_div(s.depth, T::kDims);
  int64_t task = task_of_block();
  const int64_t d0 = task % tiles * T::kDims + lane * T::kLanes;
  const int64_t split = (task /= tiles) % s.splits, first_row = task / s.splits * kWarps, row = first_row + warp;
  if (first_row >= s.rows) return;
  const int64_t begin = split * s.split_rows, end = min(s.other_rows, begin + s.split_rows);

  V own[T::kVectors], sums[T::kVectors] = {};
#pragma unroll
  for (int i = 0; i < T::kVectors; ++i)
    if (d0 + i * T::kStep < s.depth)
      own[i] = *reinterpret_cast<const V*>(s.own + min(row, s.rows - 1) * s.depth + d0 + i * T::kStep);

#pragma unroll 1
  for (int64_t others = begin; others < end; others += T::kOthers) {
    __syncthreads();
    if (of_query) {
      const int64_t first = others + lane * 32;
      unsigned word = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (row < s.rows && first + 8 * i < end)
          word |= unsigned(pairs.active[row * pairs.row_bytes + first / 8 + i]) << 8 * i;
      if (first < end && end - first < 32) word &= (1u << (end - first)) - 1;  // spare bits may be anything
      words[warp][lane] = word;
    } else {
#pragma unroll
      for (int i = 0; i < T::kOthers; i += kThreads) {
        const int64_t n = others + i + threadIdx.x;
        const unsigned byte = n < end ? pairs.active[n * pairs.row_bytes + first_row / 8] : 0;
#pragma unroll
        for (int j = 0; j < kWarps; ++j) {
          const unsigned word = __ballot_sync(kAll, byte >> j & 1);
          if (lane == j) words[j][i / kWarp + warp] = word;
        }
      }
    }
    __syncthreads();
    const unsigned word = row < s.rows ? words[warp][lane] : 0;
#pragma unroll 1
    for (unsigned left = __ballot_sync(kAll, word != 0); left; left &= left - 1) {
      const int place = __ffs(int(left)) - 1;
#pragma unroll 1
      for (unsigned bits = __shfl_sync(kAll, word, place); bits; bits &= bits - 1) {
        const int64_t other = others + place * 32 + __ffs(int(bits)) - 1;
        const A g = of_query ? pairs.gradient(row, other) : pairs.gradient(other, row);
        const A* const from = s.other + other * s.depth + d0;
#pragma unroll
        for (int i = 0; i < T::kVectors; ++i) {
          if (d0 + i * T::kStep >= s.depth) break;
          const V its = *reinterpret_cast<const V*>(from + i * T::kStep);
#pragma unroll
          for (int k = 0; k < T::kLanes; ++k) sums[i].lane[k] += g * sign(own[i].lane[k], its.lane[k]);
        }
      }
    }
  }
  if (row >= s.rows) return;
  A* const to = s.sums + (split * s.rows + row) * s.depth + d0;
#pragma unroll
  for (int i = 0; i < T::kVectors; ++i) {
    if (d0 + i * T::kStep >= s.depth) break;
#pragma unroll
    for (int k = 0; k < T::kLanes; ++k) sums[i].lane[k] *= s.factor;
    *reinterpret_cast<V*>(to + i * T::kStep) = sums[i];
  }
}

}  // namespace
}  // namespace dissim
