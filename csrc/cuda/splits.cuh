// Top-k over references that are divided into splits: each split has a candidate list of its own for every query, and a
// warp or a block merges the lists of a query into its k best.
//
//   scan:   block (query tile, split)  ->  candidate list of each of its queries for this split
//   merge:  warp or block per query    ->  k-th best of all its lists, gather what is not worse, sort
#pragma once

#include "select.cuh"

namespace dissim {
namespace {

constexpr int64_t kTargetTopkBlocks = 512;  // of a grid: several blocks per SM of the largest devices
// A query has at most kMaxSplitsAnyK splits; for a small k it may have more, as long as its lists have at most
// kMaxListSlots slots together.
constexpr int64_t kMaxSplitsAnyK = 8, kMaxListSlots = 32768;

// The candidate lists of all splits, [queries][splits][capacity]. So the lists of one query are contiguous and can be
// read as one list.
template <class A>
struct SplitLists {
  int count, tiles;  // number of splits, and of reference tiles per split
  int64_t queries, references, k, capacity;
  Key<A>* keys = nullptr;
  int64_t* indices = nullptr;

  int64_t bytes() const { return queries * slots_per_query() * int64_t(sizeof(int64_t) + sizeof(Key<A>)); }
  SplitLists bind(void* workspace) const {
    SplitLists bound = *this;
    bound.indices = static_cast<int64_t*>(workspace);
    bound.keys = reinterpret_cast<Key<A>*>(bound.indices + queries * slots_per_query());
    return bound;
  }

  __host__ __device__ __forceinline__ int64_t slots_per_query() const { return count * capacity; }
  __device__ __forceinline__ CandidateList<A> list(int64_t split, int64_t n) const {
    const int64_t first_slot = (n * count + split) * capacity;
    return {keys + first_slot, indices + first_slot};
  }
  template <class Scope>
  __device__ __forceinline__ Candidate<A> kth_best_in_row(int64_t n) const {
    return kth_best<Scope>(list(0, n), slots_per_query(), k, references);
  }
  __device__ __forceinline__ void append(int64_t split, int64_t n, ListState<A>& state, const Candidate<A>& mine,
                                         bool valid) const {
    dissim::append(list(split, n), state, capacity, k, references, mine, valid);
  }
  // Gives the slots from `filled` on the key 0, "no candidate". All lanes of a warp call this.
  __device__ __forceinline__ void clear_unused_slots(int64_t split, int64_t n, int64_t filled) const {
    Key<A>* const list_keys = list(split, n).keys;
    for (int64_t i = filled + threadIdx.x % kWarp; i < capacity; i += kWarp) list_keys[i] = 0;
  }
};

// Slots of a list. The more there are beyond k, the more rarely it is full; at least a warp's candidates have to fit.
inline int64_t list_capacity(int64_t k) { return k + max(kWarp, k / 4); }

// The splits of a problem that is scored in tiles of tile_rows queries and tile_rows references. The lists take at most
// `max_bytes`, or the bytes of one split if that is more.
template <class A>
SplitLists<A> plan_splits(const TopK& p, int64_t tile_rows, int64_t max_bytes) {
  const int64_t reference_tiles = max(1, ceil_div(p.reference.rows, tile_rows));
  const int64_t query_tiles = max(1, ceil_div(p.query.rows, tile_rows));
  const int64_t capacity = list_capacity(p.k);
  const int64_t split_bytes = max(1, p.query.rows) * capacity * int64_t(sizeof(int64_t) + sizeof(Key<A>));
  const int64_t max_splits = min(max(kMaxSplitsAnyK, kMaxListSlots / capacity), max(1, max_bytes / split_bytes));
  const int64_t target_splits = min(min(max_splits, ceil_div(kTargetTopkBlocks, query_tiles)), reference_tiles);
  const int64_t tiles_per_split = ceil_div(reference_tiles, target_splits);
  return {int(ceil_div(reference_tiles, tiles_per_split)), int(tiles_per_split), p.query.rows, p.reference.rows, p.k,
          min(capacity, tiles_per_split * tile_rows)};
}

// Merges the lists of a query, a Scope per query. The k best are gathered in the output in any order and sorted there;
// until they are sorted, the output's scores hold keys.
template <class Scope, class A>
__global__ void __launch_bounds__(kThreads) topk_merge_kernel(TopK p, SplitLists<A> splits) {
  constexpr int queries_per_block = kThreads / Scope::kSize;
  __shared__ unsigned long long gathered_counts[queries_per_block];
  unsigned long long& gathered = gathered_counts[threadIdx.x / Scope::kSize];
  const int64_t n = int64_t(blockIdx.x) * queries_per_block + threadIdx.x / Scope::kSize;
  if (n >= p.query.rows) return;
  A* const scores = static_cast<A*>(p.scores) + n * p.k;
  const CandidateList<A> candidates = splits.list(0, n);
  const CandidateList<A> best = {reinterpret_cast<Key<A>*>(scores), p.indices + n * p.k};
  if (Scope::rank() == 0) gathered = 0;
  const Candidate<A> threshold = splits.template kth_best_in_row<Scope>(n);
  Scope::sync();
  for (int64_t i = Scope::rank(); i < splits.slots_per_query(); i += Scope::kSize) {
    const Candidate<A> mine = candidates.load(i);
    if (mine.key && !threshold.is_better_than(mine)) best.store(int64_t(atomicAdd(&gathered, 1)), mine);
  }
  Scope::sync();
  const int64_t count = int64_t(gathered);
  sort_best_first<Scope>(best, count);
  for (int64_t i = Scope::rank(); i < p.k; i += Scope::kSize) {
    scores[i] = key_to_score<A>(i < count ? best.keys[i] : 0, p.largest);
    if (i >= count) p.indices[n * p.k + i] = -1;  // fewer than k candidates
  }
}

// Up to this many slots, a warp merges a query alone; a block would spend most of the time at its barriers.
constexpr int64_t kMaxWarpMergeSlots = 1024;

template <class A>
void launch_merge(const TopK& p, const SplitLists<A>& splits, Stream stream) {
  const auto launch_kernel = [&](auto kernel, int64_t queries_per_block) {
    launch("topk_merge_kernel", kernel, {ceil_div(p.query.rows, queries_per_block), 1}, 0, stream, p, splits);
  };
  if (splits.slots_per_query() <= kMaxWarpMergeSlots) {
    launch_kernel(topk_merge_kernel<WarpScope, A>, kWarps);
  } else {
    launch_kernel(topk_merge_kernel<BlockScope, A>, 1);
  }
}

}  // namespace
}  // namespace dissim
