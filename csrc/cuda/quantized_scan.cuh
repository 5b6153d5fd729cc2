// The scan of the quantized search (E10). For every pair it computes S, the sum of the code differences with the signs
// of the weights: an integer that orders a query's references like their scores, up to the error bounds. Of S it keeps
//
//   for each query and split      the k largest lower bounds S - error[m], as a candidate list
//   for each query and cluster    the largest upper bound S + error[m]
//
// All numbers are in steps. What a query adds to all of its scores, and its own error, come later (quantized_topk.cu).
//
//   for each reference tile of the split:
//       sums = S of all pairs                        two passes: SAD over the groups that lower S, negate, SAD over
//                                                    the groups that raise it
//       store the largest upper bound of each query and cluster
//       for each query with a lower bound above its list's threshold:
//           append its lower bounds to the list, a warp per query
//
// A cluster is the 16 references of two neighboring threads x, x + 1 (x even) of sad.cuh: four rows of every 32. So its
// maximum takes one shuffle.
//
//   references of a tile   0  1  2  3 | 4  5  6  7 | ... | 28 .. 31 || 32 33 34 35 | ...            | 124 .. 127
//   cluster of the tile        0      |     1      | ... |    7     ||      0      |     1     | ...|     7
#pragma once

#include "candidates.cuh"
#include "sad.cuh"
#include "splits.cuh"

namespace dissim {
namespace {

constexpr int kLowest = -(1 << 30);  // below every bound (MATH.md, "range of the integers")

// A bound is an int32. Its key inverts the sign bit, so that larger keys are larger bounds and keys are above 1, as
// select.cuh needs them. float stands for "a dtype whose keys have 32 bits" in the templates of select.cuh.
using Bound = float;
__device__ __forceinline__ uint32_t bound_to_key(int bound) { return uint32_t(bound) ^ kSignBit<Bound>; }
// Of the key 0, "no bound", it returns INT_MIN.
__device__ __forceinline__ int key_to_bound(uint32_t key) { return int(key ^ kSignBit<Bound>); }

constexpr int kClusterRun = 4;  // rows of a cluster that are neighbors
constexpr int kClusterPeriod = 2 * kBlockSide;  // from one run to the next
constexpr int kClusterRows = 2 * SadTile::kPerThread;  // of two threads
constexpr int kTileClusters = SadTile::kRows / kClusterRows;
inline __host__ __device__ int64_t num_clusters(int64_t rows) { return ceil_div(rows, SadTile::kRows) * kTileClusters; }
// Row i of a cluster, 0 <= i < kClusterRows.
__device__ __forceinline__ int64_t cluster_row(int64_t cluster, int i) {
  return cluster / kTileClusters * SadTile::kRows + cluster % kTileClusters * kClusterRun +
         i / kClusterRun * kClusterPeriod + i % kClusterRun;
}

// Appends the lower bounds of query n in a tile to its list, by a warp. sums: [SadTile::kRows].
__device__ __forceinline__ void append_lower_bounds(const QuantizedTopK& p, const SplitLists<Bound>& splits,
                                                    const int* sums, int64_t n, int64_t m0,
                                                    ListState<Bound>& shared_state) {
  ListState<Bound> state = shared_state;
#pragma unroll 1
  for (int column = threadIdx.x % kWarp; column < SadTile::kRows; column += kWarp) {
    const int64_t m = m0 + column;
    Candidate<Bound> mine = {0, m};
    if (m < p.topk.reference.rows) mine.key = bound_to_key(sums[column] - p.reference_errors[m]);
    const bool valid =
        m < p.topk.reference.rows && mine.is_better_than(state.threshold) && is_candidate(p.topk.filter, n, m);
    splits.append(blockIdx.y, n, state, mine, valid);
  }
  __syncwarp();
  if (threadIdx.x % kWarp == 0) shared_state = state;
  __syncwarp();
}

// upper_bounds: [queries][clusters].
__global__ void __launch_bounds__(kThreads, 2)
    quantized_scan_kernel(QuantizedTopK p, SplitLists<Bound> splits, int* upper_bounds) {
  using T = SadTile;
  DISSIM_DYNAMIC_SHARED(uint8_t, buffers);
  __shared__ ListState<Bound> states[T::kRows];
  constexpr int warp_rows = T::kRows / kWarps;  // a warp holds all pairs of these queries (two rows of threads)
  const int x = threadIdx.x % kBlockSide, y = threadIdx.x / kBlockSide, warp = threadIdx.x / kWarp;
  const int64_t n0 = int64_t(blockIdx.x) * T::kRows;
  const CodePanels query = code_panels(p.query_codes, n0, p.topk.query.rows, p.groups);
  if (threadIdx.x % kWarp < warp_rows) states[warp * warp_rows + threadIdx.x % kWarp] = kEmptyList<Bound>;
  __syncwarp();
#pragma unroll 1
  for (int tile = 0; tile < splits.tiles; ++tile) {
    const int64_t m0 = (int64_t(blockIdx.y) * splits.tiles + tile) * T::kRows;
    if (m0 >= p.topk.reference.rows) break;
    const CodePanels reference = code_panels(p.reference_codes, m0, p.topk.reference.rows, p.groups);

    // Pass 0: the groups that lower S. Pass 1: those that raise it, which are the positive weights if the largest
    // scores are searched. Groups of positive weights come first in the codes.
    unsigned sums[T::kPerThread][T::kPerThread] = {};
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
      for (int i = 0; i < T::kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < T::kPerThread; ++j) sums[i][j] = 0u - sums[i][j];
      const bool is_positive = p.topk.largest == (pass == 1);
      const int positive_groups = int(max(0, min(*p.positive, p.groups)));  // device data, which no host code checked
      accumulate_groups(query, reference, is_positive ? 0 : positive_groups,
                        is_positive ? positive_groups : int(p.groups), buffers, sums);
    }

    int errors[T::kPerThread];
#pragma unroll
    for (int j = 0; j < T::kPerThread; ++j) {
      const int64_t m = m0 + sad_column(j);
      const bool exists = m < p.topk.reference.rows;
      errors[j] = exists ? p.reference_errors[m] : 0;
      if (!exists)
#pragma unroll
        for (int i = 0; i < T::kPerThread; ++i) sums[i][j] = unsigned(kLowest);
    }

    // Bit r of `rows_to_append`: query r of the warp has a lower bound above the threshold of its list.
    unsigned rows_to_append = 0;
#pragma unroll
    for (int i = 0; i < T::kPerThread; ++i) {
      const int row = y * T::kPerThread + i, threshold = key_to_bound(states[row].threshold.key);
      int upper = kLowest;
      bool is_above = false;
#pragma unroll
      for (int j = 0; j < T::kPerThread; ++j) {
        upper = max(upper, int(sums[i][j]) + errors[j]);
        is_above = is_above || int(sums[i][j]) - errors[j] > threshold;
      }
      // The lanes 0 to 15 hold query i of the warp, the lanes 16 to 31 query kPerThread + i.
      const unsigned votes = __ballot_sync(kAllLanes, is_above);
      rows_to_append |= unsigned((votes & 0xffffu) != 0) << i | unsigned(votes >> 16 != 0) << (T::kPerThread + i);
      upper = max(upper, __shfl_xor_sync(kAllLanes, upper, 1));
      if (x % 2 == 0 && n0 + row < p.topk.query.rows)
        upper_bounds[(n0 + row) * num_clusters(p.topk.reference.rows) + m0 / kClusterRows + x / 2] = upper;
    }

    if (rows_to_append) {
      int* const warp_sums = reinterpret_cast<int*>(buffers) + warp * warp_rows * T::kRows;  // [warp_rows][kRows]
#pragma unroll
      for (int i = 0; i < T::kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < T::kPerThread; ++j)
          warp_sums[(y % 2 * T::kPerThread + i) * T::kRows + sad_column(j)] = int(sums[i][j]);
      __syncwarp();
      for (; rows_to_append; rows_to_append &= rows_to_append - 1) {
        const int row = __ffs(int(rows_to_append)) - 1;
        const int64_t n = n0 + warp * warp_rows + row;
        if (n < p.topk.query.rows)
          append_lower_bounds(p, splits, warp_sums + row * T::kRows, n, m0, states[warp * warp_rows + row]);
      }
    }
    __syncthreads();  // no thread reads the buffers any more
  }
#pragma unroll 1
  for (int row = warp * warp_rows; row < (warp + 1) * warp_rows && n0 + row < p.topk.query.rows; ++row)
    splits.clear_unused_slots(blockIdx.y, n0 + row, states[row].count);
}

}  // namespace
}  // namespace dissim
