// quantized_topk: the k best references by way of a scan over codes (E10). The k rows of the best lower bounds are
// scored; what all of them reach is a bar for the upper bounds. Clusters with an upper bound that reaches it are
// scanned once more, and their rows that do are scored as topk scores them, so that indices and scores are the same
// bits. All is exact whatever passes: there is no list that could overflow.
#include "launchers.h"
#include "batch.cuh"
#include "quantized_scan.cuh"

namespace dissim {
namespace {

constexpr int kFewBlocks = 2;  // of a multiprocessor, for registers enough not to spill
// Of the bounds of clusters, of the lists of bounds and of those of scores each, of the queries that are searched
// together; more only where a tile of queries with one split, or a block's warps, needs more.
constexpr int64_t kBytes = 64 << 20;

// A score as topk computes it: one sum, dimensions ascending.
template <class E>
__device__ __forceinline__ Acc<E> exact_score(const TopK& p, int64_t n, int64_t m) {
  using A = Acc<E>;
  const A* const weight = static_cast<const A*>(p.weight);
  A sum = 0;
#pragma unroll 4
  for (int64_t d = 0; d < p.dim; ++d)
    sum = add_term(weight[d], element_of<E>(p.query, n, d), element_of<E>(p.reference, m, d), sum);
  return sum + (p.bias ? *static_cast<const A*>(p.bias) : A(0));
}

// What the scan and a query's error leave of a bound; above all but those of the unbounded, which must pass.
__device__ __forceinline__ int bar_of(double bound) {
  return bound < kUnbounded / 2 ? (bound > kLowest ? int(bound) : kLowest) : kUnbounded / 2;
}

// The least of what a block's threads bring, for the first of them.
template <class K>
__device__ __forceinline__ K least_of_block(K key) {
  __shared__ K of_warps[kWarps];
#pragma unroll
  for (int half = kWarp / 2; half; half /= 2) key = min(key, __shfl_xor_sync(kAll, key, half));
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = key;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) key = min(key, of_warps[warp]);
  __syncthreads();
  return key;
}

// A block for each query: the bar that upper bounds must reach, from its k best lower bounds and their rows' scores.
template <class E>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    quantized_bar_kernel(QuantizedTopK p, Splits<Bound> splits, int* bars) {
  using A = Acc<E>;
  const int64_t n = blockIdx.x;
  const int32_t error = p.query_errors[n];
  if (threadIdx.x == 0) p.rescored[n] = 0;
  if (splits.k == 0) return;
  const Candidate<Bound> last = splits.last_of_query<OneBlock>(n);
  Key<Bound> bound = ~Key<Bound>(0);
  Key<A> score = ~Key<A>(0);
  for (int64_t i = threadIdx.x; i < splits.places(); i += kThreads) {
    const Candidate<Bound> mine = splits.list(0, n).at(i);
    if (!mine.key || last.better_than(mine)) continue;
    bound = min(bound, mine.key);
    score = min(score, key_of<A>(exact_score<E>(p.topk, n, mine.index), p.topk.largest));
  }
  bound = least_of_block(bound);
  score = least_of_block(score);
  if (threadIdx.x) return;
  int bar = kLowest;
  if (last.key) {  // there are k
    bar = bar_of(bound_of(bound) - 2.0 * error - 2);
    if (score > 1 && error != kUnbounded) {  // 1 is NaN, which bounds nothing
      const double scale = p.topk.largest ? 1 : -1, exact = double(score_of<A>(score, p.topk.largest));
      bar = max(bar, bar_of(scale * (exact - p.query_bases[n]) / *p.step - error - 2));
    }
  }
  bars[n] = bar;
}

// S of query n and a reference m of each two lanes, by a warp: either half of it takes every other group.
__device__ __forceinline__ int sum_of_codes(const QuantizedTopK& p, int64_t n, int64_t m) {
  const auto place = [&](const uint8_t* codes, int64_t row) {
    return codes + row / kCodePanel * p.groups * kPanelGroup + row % kCodePanel * kCodeGroup;
  };
  const uint8_t *const q = place(p.query_codes, n), *const r = place(p.reference_codes, m);
  const int64_t positive = *p.positive;
  unsigned sum = 0;
#pragma unroll 4
  for (int64_t group = threadIdx.x % kWarp / kCluster; group < p.groups; group += kWarp / kCluster) {
    const uint2 a = *reinterpret_cast<const uint2*>(q + group * kPanelGroup),
                b = *reinterpret_cast<const uint2*>(r + group * kPanelGroup);
    const unsigned part = add_sad(a.y, b.y, add_sad(a.x, b.x, 0));
    sum += (group < positive) == p.topk.largest ? part : 0u - part;
  }
  return int(sum + __shfl_xor_sync(kAll, sum, kWarp / 2));
}

// Scores the rows that may be among the k best; a warp for each query and share of the clusters.
template <class E>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    quantized_rescore_kernel(QuantizedTopK p, const int* uppers, const int* bars, Splits<Acc<E>> splits) {
  using A = Acc<E>;
  __shared__ int64_t queues[kWarps][kWarp + kCluster];  // rows to score, as soon as they fill a warp
  const int lane = threadIdx.x % kWarp, bar = bars[blockIdx.x];
  const int64_t n = blockIdx.x, split = int64_t(blockIdx.y) * kWarps + threadIdx.x / kWarp;
  const int64_t clusters = clusters_of(p.topk.reference.rows);
  int64_t* const queue = queues[threadIdx.x / kWarp];
  Selection<A> selection = kNothingYet<A>;
  int waiting = 0;
  int64_t rescored = 0;
  const auto score = [&](int count) {  // the last so many of the queue
    __syncwarp();
    waiting -= count;
    Candidate<A> mine = {0, kNoIndex};
    if (lane < count) {
      mine.index = queue[waiting + lane];
      mine.key = key_of<A>(exact_score<E>(p.topk, n, mine.index), p.topk.largest);
    }
    splits.offer(split, n, selection, mine, lane < count && mine.better_than(selection.last));
    __syncwarp();
  };
#pragma unroll 1
  for (int64_t first = split * kWarp; first < clusters; first += int64_t(splits.count) * kWarp) {
    const bool reaches = first + lane < clusters && uppers[n * clusters + first + lane] >= bar;
#pragma unroll 1
    for (unsigned hits = __ballot_sync(kAll, reaches); hits; hits &= hits - 1) {
      const int64_t m = row_of_cluster(first + __ffs(int(hits)) - 1, lane % kCluster);
      const int sum = sum_of_codes(p, n, min(m, p.topk.reference.rows - 1));
      const bool candidate = lane < kCluster && allowed(p.topk, n, m);
      const bool taken = candidate && sum + p.reference_errors[m] >= bar;
      const unsigned votes = __ballot_sync(kAll, taken);
      if (taken) queue[waiting + __popc(votes & ((1u << lane) - 1))] = m;
      waiting += __popc(votes);
      rescored += __popc(votes);
      if (waiting >= kWarp) score(kWarp);
    }
  }
  score(waiting);
  splits.close(split, n, selection.count);
  if (lane == 0) atomicAdd(reinterpret_cast<unsigned long long*>(p.rescored + n), (unsigned long long)rescored);
}

// What a call keeps in its workspace.
template <class A>
struct Plan {
  Splits<Bound> bounds;
  Splits<A> scores;
  int *uppers, *bars;
  int64_t bytes;
};

template <class A>
Plan<A> plan_of(const QuantizedTopK& p, void* workspace) {
  const int64_t queries = p.topk.query.rows, k = p.topk.k, clusters = clusters_of(p.topk.reference.rows);
  const int64_t capacity = capacity_for(k),
                blocks = min(ceil_div(kBlocks, max(1, queries)), kCandidates / kWarps / capacity);
  const int64_t splits = max(1, min(blocks, ceil_div(clusters, kWarps * kWarp))) * kWarps;
  Plan<A> plan = {splits_of<Bound>(p.topk, SadTile::kRows, kBytes),
                  {int(splits), 0, queries, p.topk.reference.rows, k, capacity}};
  const auto take = [&](int64_t size) {
    void* const place = static_cast<char*>(workspace) + plan.bytes;
    plan.bytes += ceil_div(size, 16) * 16;
    return place;
  };
  plan.bounds = plan.bounds.at(take(plan.bounds.bytes()));
  plan.scores = plan.scores.at(take(plan.scores.bytes()));
  plan.uppers = static_cast<int*>(take(queries * clusters * int64_t(sizeof(int))));
  plan.bars = static_cast<int*>(take(queries * int64_t(sizeof(int))));
  return plan;
}

// The problem of the queries from `first` on, a multiple of a panel, as many as are searched together.
template <class E>
QuantizedTopK part_of(QuantizedTopK p, int64_t first) {
  const int64_t uppers = clusters_of(p.topk.reference.rows) * int64_t(sizeof(int));
  const int64_t scores = kWarps * capacity_for(p.topk.k) * int64_t(sizeof(int64_t) + sizeof(Key<Acc<E>>));
  const int64_t rows = max(1, kBytes / max(uppers, scores) / SadTile::kRows) * SadTile::kRows;
  TopK& t = p.topk;
  t.query.data = static_cast<const E*>(t.query.data) + first * t.query.row_stride;
  t.query.rows = min(rows, t.query.rows - first);
  if (t.exclude_index) t.exclude_index += first;
  if (t.query_labels) t.query_labels += first;
  t.scores = static_cast<Acc<E>*>(t.scores) + first * t.k;
  t.indices += first * t.k;
  p.query_codes += first / kCodePanel * p.groups * kPanelGroup;
  p.query_errors += first;
  p.query_bases += first;
  p.rescored += first;
  return p;
}

template <class E>
void launch_quantized_topk_as(const QuantizedTopK& all, void* workspace, Stream stream) {
  using A = Acc<E>;
  const Plan<A> plan = plan_of<A>(part_of<E>(all, 0), workspace);  // the other parts have no more queries
  for (int64_t first = 0; first < all.topk.query.rows;) {
    const QuantizedTopK p = part_of<E>(all, first);
    const int64_t queries = p.topk.query.rows;
    if (p.topk.k)
      launch("quantized_scan_kernel", quantized_scan_kernel, {ceil_div(queries, SadTile::kRows), plan.bounds.count},
             SadTile::kSharedBytes, stream, p, plan.bounds, plan.uppers);
    launch("quantized_bar_kernel", quantized_bar_kernel<E>, {queries, 1}, 0, stream, p, plan.bounds, plan.bars);
    if (p.topk.k) {
      launch("quantized_rescore_kernel", quantized_rescore_kernel<E>, {queries, plan.scores.count / kWarps}, 0, stream,
             p, static_cast<const int*>(plan.uppers), static_cast<const int*>(plan.bars), plan.scores);
      launch_merge(p.topk, plan.scores, stream);
    }
    first += queries;
  }
}

}  // namespace

int64_t quantized_topk_workspace(const QuantizedTopK& p) {
  switch (p.topk.dtype) {
    case Dtype::float16: return plan_of<float>(part_of<__half>(p, 0), nullptr).bytes;
    case Dtype::bfloat16: return plan_of<float>(part_of<__nv_bfloat16>(p, 0), nullptr).bytes;
    case Dtype::float32: return plan_of<float>(part_of<float>(p, 0), nullptr).bytes;
    case Dtype::float64: return plan_of<double>(part_of<double>(p, 0), nullptr).bytes;
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
