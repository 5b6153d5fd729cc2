// The scan over codes (E10): of every pair S, the sum of code differences with the sign of the weights, the order of
// the scores but for errors. Kept of it are each split's k best lower bounds of every query, and of each cluster of
// references the greatest upper bound. All in steps; what a query adds to its scores and their errors is left out.
#pragma once

#include "sad.cuh"
#include "splits.cuh"

namespace dissim {
namespace {

constexpr int kLowest = -(1 << 30);  // below every bound

// Bounds as keys of `select.cuh`: above 1, and larger is better.
using Bound = float;  // whose keys have 32 bits
__device__ __forceinline__ uint32_t key_of_bound(int bound) { return uint32_t(bound) ^ kSign<Bound>; }
__device__ __forceinline__ int bound_of(uint32_t key) { return int(key ^ kSign<Bound>); }  // the least int of no key

// A cluster is the references of two threads that are neighbours: 4 rows together of every 32.
constexpr int kCluster = 2 * SadTile::kSide, kClusters = SadTile::kRows / kCluster;
inline __host__ __device__ int64_t clusters_of(int64_t rows) { return ceil_div(rows, SadTile::kRows) * kClusters; }
__device__ __forceinline__ int64_t row_of_cluster(int64_t cluster, int i) {
  return cluster / kClusters * SadTile::kRows + cluster % kClusters * 4 + i / 4 * 32 + i % 4;
}

__device__ __forceinline__ bool allowed(const TopK& p, int64_t n, int64_t m) {
  return m < p.reference.rows && !(p.exclude_index && p.exclude_index[n] == m) &&
         !(p.query_labels && p.query_labels[n] == p.reference_labels[m]);
}

// Offers a query's lower bounds in a tile to its list, by a warp.
__device__ __forceinline__ void offer_bounds(const QuantizedTopK& p, const Splits<Bound>& splits, const int* sums,
                                             int64_t n, int64_t m0, Selection<Bound>& selection_of_row) {
  Selection<Bound> selection = selection_of_row;
#pragma unroll 1
  for (int column = threadIdx.x % kWarp; column < SadTile::kRows; column += kWarp) {
    const int64_t m = m0 + column;
    Candidate<Bound> mine = {0, m};
    if (m < p.topk.reference.rows) mine.key = key_of_bound(sums[column] - p.reference_errors[m]);
    const bool offered = mine.better_than(selection.last) && allowed(p.topk, n, m);
    splits.offer(blockIdx.y, n, selection, mine, offered);
  }
  __syncwarp();
  if (threadIdx.x % kWarp == 0) selection_of_row = selection;
  __syncwarp();
}

// uppers: [queries][clusters].
__global__ void __launch_bounds__(kThreads, 2)
    quantized_scan_kernel(QuantizedTopK p, Splits<Bound> splits, int* uppers) {
  using T = SadTile;
  DISSIM_DYNAMIC_SHARED(uint8_t, buffers);
  __shared__ Selection<Bound> selections[T::kRows];
  constexpr int kWarpRows = T::kRows / kWarps;  // the rows of a warp are its own in registers too
  const int x = threadIdx.x % kGrid, y = threadIdx.x / kGrid, warp = threadIdx.x / kWarp;
  const int64_t n0 = int64_t(blockIdx.x) * T::kRows;
  const CodePanels query = code_panels(p.query_codes, n0, p.topk.query.rows, p.groups);
  if (threadIdx.x % kWarp < kWarpRows) selections[warp * kWarpRows + threadIdx.x % kWarp] = kNothingYet<Bound>;
  __syncwarp();
#pragma unroll 1
  for (int tile = 0; tile < splits.tiles; ++tile) {
    const int64_t m0 = (int64_t(blockIdx.y) * splits.tiles + tile) * T::kRows;
    if (m0 >= p.topk.reference.rows) break;
    const CodePanels reference = code_panels(p.reference_codes, m0, p.topk.reference.rows, p.groups);
    unsigned sums[T::kSide][T::kSide] = {};
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {  // first the sign that counts against a reference
#pragma unroll
      for (int i = 0; i < T::kSide; ++i)
#pragma unroll
        for (int j = 0; j < T::kSide; ++j) sums[i][j] = 0u - sums[i][j];
      const bool positives = p.topk.largest == (pass == 1);
      const int positive = int(max(0, min(*p.positive, p.groups)));  // no host has looked at it
      add_groups(query, reference, positives ? 0 : positive, positives ? positive : int(p.groups), buffers, sums);
    }

    int errors[T::kSide];
#pragma unroll
    for (int j = 0; j < T::kSide; ++j) {
      const int64_t m = m0 + sad_column(j);
      const bool real = m < p.topk.reference.rows;
      errors[j] = real ? p.reference_errors[m] : 0;
      if (!real)
#pragma unroll
        for (int i = 0; i < T::kSide; ++i) sums[i][j] = unsigned(kLowest);
    }
    unsigned promising = 0;  // of the warp's rows: those with a bound that its list takes
#pragma unroll
    for (int i = 0; i < T::kSide; ++i) {
      const int row = y * T::kSide + i, bar = bound_of(selections[row].last.key);
      int upper = kLowest;
      bool above = false;
#pragma unroll
      for (int j = 0; j < T::kSide; ++j) {
        upper = max(upper, int(sums[i][j]) + errors[j]);
        above = above || int(sums[i][j]) - errors[j] > bar;
      }
      const unsigned votes = __ballot_sync(kAll, above);
      promising |= unsigned((votes & 0xffffu) != 0) << i | unsigned(votes >> 16 != 0) << (T::kSide + i);
      upper = max(upper, __shfl_xor_sync(kAll, upper, 1));
      if (x % 2 == 0 && n0 + row < p.topk.query.rows)
        uppers[(n0 + row) * clusters_of(p.topk.reference.rows) + m0 / kCluster + x / 2] = upper;
    }
    if (promising) {
      int* const staged = reinterpret_cast<int*>(buffers) + warp * kWarpRows * T::kRows;
#pragma unroll
      for (int i = 0; i < T::kSide; ++i)
#pragma unroll
        for (int j = 0; j < T::kSide; ++j) staged[(y % 2 * T::kSide + i) * T::kRows + sad_column(j)] = int(sums[i][j]);
      __syncwarp();
      for (; promising; promising &= promising - 1) {
        const int row = __ffs(int(promising)) - 1;
        const int64_t n = n0 + warp * kWarpRows + row;
        if (n < p.topk.query.rows)
          offer_bounds(p, splits, staged + row * T::kRows, n, m0, selections[warp * kWarpRows + row]);
      }
    }
    __syncthreads();  // the buffers are free
  }
#pragma unroll 1
  for (int row = warp * kWarpRows; row < (warp + 1) * kWarpRows && n0 + row < p.topk.query.rows; ++row)
    splits.close(blockIdx.y, n0 + row, selections[row].count);
}

}  // namespace
}  // namespace dissim
