// quantized_topk: the k best references through a scan over codes (E10, a filter-and-refine search). The result is
// bit-identical to topk.
//
//   1. quantized_scan_kernel       S of every pair -> k largest lower bounds, largest upper bound of each cluster
//   2. quantized_threshold_kernel  a threshold for the upper bounds of each query, the larger of
//                                      (k-th lower bound) - 2 query_error - slack
//                                      (k-th best exact score of those k rows, in steps) - query_error - slack
//   3. quantized_rescore_kernel    for each cluster whose upper bound reaches the threshold:
//                                      S of its 16 rows again; the rows whose upper bound reaches the threshold get
//                                      an exact score, computed like topk does, and go to a candidate list
//   4. topk_merge_kernel           the lists of each query -> its k best
//
// No list of survivors can overflow, because step 3 scores them as it finds them. So any number of rows may pass.
#include "launchers.h"
#include "exact_score.cuh"
#include "quantized_scan.cuh"

namespace dissim {
namespace {

constexpr int kMinBlocksPerSM = 2;  // with more, the kernels of this file would spill registers
// Limits the memory of the upper bounds, of the lists of bounds and of the lists of scores, each. Queries are searched
// in ranges of as many rows as fit. One tile of queries with one split, or one block's warps, may need more.
constexpr int64_t kMaxRangeBytes = 64 << 20;
// Subtracted from a threshold: one step for the conversion to int, one for rounding in float64 (MATH.md).
constexpr double kThresholdSlack = 2;
constexpr int kMaxThreshold = kUnbounded / 2;  // below the upper bounds of rows without a bound, which always pass

// Clamps to [kLowest, kMaxThreshold]; NaN becomes kMaxThreshold.
__device__ __forceinline__ int clamp_threshold(double threshold) {
  return threshold < kMaxThreshold ? (threshold > kLowest ? int(threshold) : kLowest) : kMaxThreshold;
}

// The minimum over a block, in all threads.
template <class K>
__device__ __forceinline__ K block_min(K key) {
  __shared__ K warp_min[kWarps];
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) key = min(key, __shfl_xor_sync(kAllLanes, key, offset));
  if (threadIdx.x % kWarp == 0) warp_min[threadIdx.x / kWarp] = key;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) key = min(key, warp_min[warp]);
  __syncthreads();
  return key;
}

// The threshold of each query, from its k largest lower bounds and the exact scores of their rows. A block per query.
template <class E>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM)
    quantized_threshold_kernel(QuantizedTopK p, SplitLists<Bound> splits, int* thresholds) {
  using A = Acc<E>;
  const int64_t n = blockIdx.x;
  const int32_t error = p.query_errors[n];
  if (threadIdx.x == 0) p.rescored[n] = 0;
  if (splits.k == 0) return;
  const Candidate<Bound> kth = splits.kth_best_in_row<BlockScope>(n);
  Key<Bound> min_bound = ~Key<Bound>(0);
  Key<A> min_score = ~Key<A>(0);
  for (int64_t i = threadIdx.x; i < splits.slots_per_query(); i += kThreads) {
    const Candidate<Bound> mine = splits.list(0, n).load(i);
    if (!mine.key || kth.is_better_than(mine)) continue;
    min_bound = min(min_bound, mine.key);
    min_score = min(min_score, score_to_key<A>(exact_score<E>(p.topk, n, mine.index), p.topk.largest));
  }
  min_bound = block_min(min_bound);
  min_score = block_min(min_score);
  if (threadIdx.x) return;
  int threshold = kLowest;
  if (kth.key) {  // there are k lower bounds
    threshold = clamp_threshold(key_to_bound(min_bound) - 2.0 * error - kThresholdSlack);
    if (min_score > 1 && error != kUnbounded) {  // the key 1 is NaN, which is no bound
      const double sign = p.topk.largest ? 1 : -1, score = double(key_to_score<A>(min_score, p.topk.largest));
      threshold =
          max(threshold, clamp_threshold(sign * (score - p.query_bases[n]) / *p.step - error - kThresholdSlack));
    }
  }
  thresholds[n] = threshold;
}

// S of query n with the row m of each lane. The lanes l and l + 16 have the same row, and each adds up every other
// group.
__device__ __forceinline__ int code_sum(const QuantizedTopK& p, int64_t n, int64_t m) {
  const auto row_codes = [&](const uint8_t* codes, int64_t row) {
    return codes + row / kCodePanel * p.groups * kPanelGroupBytes + row % kCodePanel * kCodeGroup;
  };
  const uint8_t *const q = row_codes(p.query_codes, n), *const r = row_codes(p.reference_codes, m);
  const int64_t positive_groups = *p.positive;
  unsigned sum = 0;
#pragma unroll 4
  for (int64_t group = threadIdx.x % kWarp / kClusterRows; group < p.groups; group += kWarp / kClusterRows) {
    const uint2 a = *reinterpret_cast<const uint2*>(q + group * kPanelGroupBytes),
                b = *reinterpret_cast<const uint2*>(r + group * kPanelGroupBytes);
    const unsigned sad = add_sad(a.y, b.y, add_sad(a.x, b.x, 0));
    sum += (group < positive_groups) == p.topk.largest ? sad : 0u - sad;
  }
  return int(sum + __shfl_xor_sync(kAllLanes, sum, kWarp / 2));
}

// Scores the rows that may be among the k best. A warp per query and split; a split is every splits.count-th run of 32
// clusters. Rows to score are queued until there is one for every lane.
template <class E>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM)
    quantized_rescore_kernel(QuantizedTopK p, const int* upper_bounds, const int* thresholds,
                             SplitLists<Acc<E>> splits) {
  using A = Acc<E>;
  __shared__ int64_t queues[kWarps][kWarp + kClusterRows];  // fewer than kWarp rows, and then those of a cluster
  const int lane = threadIdx.x % kWarp, threshold = thresholds[blockIdx.x];
  const int64_t n = blockIdx.x, split = int64_t(blockIdx.y) * kWarps + threadIdx.x / kWarp;
  const int64_t clusters = num_clusters(p.topk.reference.rows);
  int64_t* const queue = queues[threadIdx.x / kWarp];
  ListState<A> state = kEmptyList<A>;
  int queued = 0;
  int64_t rescored = 0;
  const auto score_last = [&](int count) {  // scores the last `count` rows of the queue and removes them
    __syncwarp();
    queued -= count;
    Candidate<A> mine = {0, kNoIndex};
    if (lane < count) {
      mine.index = queue[queued + lane];
      mine.key = score_to_key<A>(exact_score<E>(p.topk, n, mine.index), p.topk.largest);
    }
    splits.append(split, n, state, mine, lane < count && mine.is_better_than(state.threshold));
    __syncwarp();
  };
#pragma unroll 1
  for (int64_t first = split * kWarp; first < clusters; first += int64_t(splits.count) * kWarp) {
    const bool cluster_passes = first + lane < clusters && upper_bounds[n * clusters + first + lane] >= threshold;
#pragma unroll 1
    for (unsigned passing = __ballot_sync(kAllLanes, cluster_passes); passing; passing &= passing - 1) {
      const int64_t m = cluster_row(first + __ffs(int(passing)) - 1, lane % kClusterRows);
      const int sum = code_sum(p, n, min(m, p.topk.reference.rows - 1));
      const bool may_pass = lane < kClusterRows && m < p.topk.reference.rows && is_candidate(p.topk.filter, n, m);
      const bool row_passes = may_pass && sum + p.reference_errors[m] >= threshold;
      const unsigned votes = __ballot_sync(kAllLanes, row_passes);
      if (row_passes) queue[queued + __popc(votes & ((1u << lane) - 1))] = m;
      queued += __popc(votes);
      rescored += __popc(votes);
      if (queued >= kWarp) score_last(kWarp);
    }
  }
  score_last(queued);
  splits.clear_unused_slots(split, n, state.count);
  if (lane == 0) atomicAdd(reinterpret_cast<unsigned long long*>(p.rescored + n), (unsigned long long)rescored);
}

// The workspace of a range of queries.
template <class A>
struct QuantizedPlan {
  SplitLists<Bound> bounds;
  SplitLists<A> scores;
  int *upper_bounds, *thresholds;
  int64_t bytes;
};

template <class A>
QuantizedPlan<A> make_plan(const QuantizedTopK& p, void* workspace) {
  const int64_t queries = p.topk.query.rows, k = p.topk.k, clusters = num_clusters(p.topk.reference.rows);
  const int64_t capacity = list_capacity(k);
  const int64_t max_blocks = min(ceil_div(kTargetTopkBlocks, max(1, queries)), kMaxListSlots / kWarps / capacity);
  const int64_t blocks_per_query = max(1, min(max_blocks, ceil_div(clusters, kWarps * kWarp)));
  QuantizedPlan<A> plan = {plan_splits<Bound>(p.topk, SadTile::kRows, kMaxRangeBytes),
                           {int(blocks_per_query * kWarps), 0, queries, p.topk.reference.rows, k, capacity}};
  const auto take = [&](int64_t size) {
    void* const begin = static_cast<char*>(workspace) + plan.bytes;
    plan.bytes += ceil_div(size, 16) * 16;
    return begin;
  };
  plan.bounds = plan.bounds.bind(take(plan.bounds.bytes()));
  plan.scores = plan.scores.bind(take(plan.scores.bytes()));
  plan.upper_bounds = static_cast<int*>(take(queries * clusters * int64_t(sizeof(int))));
  plan.thresholds = static_cast<int*>(take(queries * int64_t(sizeof(int))));
  return plan;
}

// The problem restricted to a range of queries: those from `first` on, a multiple of kCodePanel, as many as
// kMaxRangeBytes allows.
template <class E>
QuantizedTopK query_range(QuantizedTopK p, int64_t first) {
  const int64_t upper_bound_bytes = num_clusters(p.topk.reference.rows) * int64_t(sizeof(int));  // of a query
  const int64_t list_bytes = kWarps * list_capacity(p.topk.k) * int64_t(sizeof(int64_t) + sizeof(Key<Acc<E>>));
  const int64_t rows = max(1, kMaxRangeBytes / max(upper_bound_bytes, list_bytes) / SadTile::kRows) * SadTile::kRows;
  TopK& t = p.topk;
  t.query.data = static_cast<const E*>(t.query.data) + first * t.query.row_stride;
  t.query.rows = min(rows, t.query.rows - first);
  if (t.filter.exclude_index) t.filter.exclude_index += first;
  if (t.filter.query_labels) t.filter.query_labels += first;
  t.scores = static_cast<Acc<E>*>(t.scores) + first * t.k;
  t.indices += first * t.k;
  p.query_codes += first / kCodePanel * p.groups * kPanelGroupBytes;
  p.query_errors += first;
  p.query_bases += first;
  p.rescored += first;
  return p;
}

template <class E>
void launch_quantized_topk_as(const QuantizedTopK& all, void* workspace, Stream stream) {
  using A = Acc<E>;
  const QuantizedPlan<A> plan = make_plan<A>(query_range<E>(all, 0), workspace);  // no other range has more queries
  for (int64_t first = 0; first < all.topk.query.rows;) {
    const QuantizedTopK p = query_range<E>(all, first);
    const int64_t queries = p.topk.query.rows;
    if (p.topk.k)
      launch("quantized_scan_kernel", quantized_scan_kernel, {ceil_div(queries, SadTile::kRows), plan.bounds.count},
             SadTile::kSharedBytes, stream, p, plan.bounds, plan.upper_bounds);
    launch("quantized_threshold_kernel", quantized_threshold_kernel<E>, {queries, 1}, 0, stream, p, plan.bounds,
           plan.thresholds);
    if (p.topk.k) {
      launch("quantized_rescore_kernel", quantized_rescore_kernel<E>, {queries, plan.scores.count / kWarps}, 0, stream,
             p, static_cast<const int*>(plan.upper_bounds), static_cast<const int*>(plan.thresholds), plan.scores);
      launch_merge(p.topk, plan.scores, stream);
    }
    first += queries;
  }
}

}  // namespace

int64_t quantized_topk_workspace(const QuantizedTopK& p) {
  switch (p.topk.dtype) {
    case Dtype::float16: return make_plan<float>(query_range<__half>(p, 0), nullptr).bytes;
    case Dtype::bfloat16: return make_plan<float>(query_range<__nv_bfloat16>(p, 0), nullptr).bytes;
    case Dtype::float32: return make_plan<float>(query_range<float>(p, 0), nullptr).bytes;
    case Dtype::float64: return make_plan<double>(query_range<double>(p, 0), nullptr).bytes;
  }
  return 0;
}

void launch_quantized_topk(const QuantizedTopK& p, void* workspace, Stream stream) {
  switch (p.topk.dtype) {
    case Dtype::float16: return launch_quantized_topk_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_quantized_topk_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_quantized_topk_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_quantized_topk_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
