// A query's references in shares: each has a list of candidates for the k best, and a warp or a block merges a query's.
#pragma once

#include "select.cuh"

namespace dissim {
namespace {

constexpr int64_t kBlocks = 512;  // wanted in a grid: some for every multiprocessor of the largest devices
constexpr int64_t kSplits = 8;  // that a query may have whatever k is, and more
constexpr int64_t kCandidates = 32768;  // while its lists have no more places than these

// Every split's lists: [queries][splits][capacity].
template <class A>
struct Splits {
  int count, tiles;  // splits of the references, tiles of a split
  int64_t queries, references, k, capacity;
  Key<A>* keys = nullptr;
  int64_t* indices = nullptr;

  int64_t bytes() const { return queries * places() * int64_t(sizeof(int64_t) + sizeof(Key<A>)); }
  Splits at(void* workspace) const {
    Splits placed = *this;
    placed.indices = static_cast<int64_t*>(workspace);
    placed.keys = reinterpret_cast<Key<A>*>(placed.indices + queries * places());
    return placed;
  }

  __device__ __forceinline__ List<A> list(int64_t split, int64_t n) const {
    const int64_t at = (n * count + split) * capacity;
    return {keys + at, indices + at};
  }
  // The lists of a query lie one after another.
  __host__ __device__ __forceinline__ int64_t places() const { return count * capacity; }
  template <class Group>
  __device__ __forceinline__ Candidate<A> last_of_query(int64_t n) const {
    return last_of_best<Group>(list(0, n), places(), k, references);
  }
  __device__ __forceinline__ void offer(int64_t split, int64_t n, Selection<A>& selection, const Candidate<A>& mine,
                                        bool offered) const {
    dissim::offer(list(split, n), selection, capacity, k, references, mine, offered);
  }
  // Ends a list, by a warp: places that are not filled have key 0.
  __device__ __forceinline__ void close(int64_t split, int64_t n, int64_t filled) const {
    Key<A>* const to = list(split, n).keys;
    for (int64_t i = filled + threadIdx.x % kWarp; i < capacity; i += kWarp) to[i] = 0;
  }
};

// A list's places: the more beyond k, the more rarely it is full. 1.25 k for a large k.
inline int64_t capacity_for(int64_t k) { return k + max(kWarp, k / 4); }

// Of queries and references that are scored in tiles of so many rows of either. The lists take at most `bytes`, or what
// one share takes.
template <class A>
Splits<A> splits_of(const TopK& p, int64_t rows, int64_t bytes) {
  const int64_t tiles = max(1, ceil_div(p.reference.rows, rows)), blocks = max(1, ceil_div(p.query.rows, rows));
  const int64_t capacity = capacity_for(p.k);
  const int64_t of_share = max(1, p.query.rows) * capacity * int64_t(sizeof(int64_t) + sizeof(Key<A>));
  const int64_t max_splits = min(max(kSplits, kCandidates / capacity), max(1, bytes / of_share));
  const int64_t wanted = min(min(max_splits, ceil_div(kBlocks, blocks)), tiles);
  const int64_t each = ceil_div(tiles, wanted);
  return {int(ceil_div(tiles, each)), int(each), p.query.rows, p.reference.rows, p.k, min(capacity, each * rows)};
}

// A group for each query. The best are gathered in the result, in any order, and sorted there.
template <class Group, class A>
__global__ void __launch_bounds__(kThreads) topk_merge_kernel(TopK p, Splits<A> splits) {
  constexpr int groups = kThreads / Group::kSize;
  __shared__ unsigned long long gathered_of_groups[groups];
  unsigned long long& gathered = gathered_of_groups[threadIdx.x / Group::kSize];
  const int64_t n = int64_t(blockIdx.x) * groups + threadIdx.x / Group::kSize;
  if (n >= p.query.rows) return;
  A* const scores = static_cast<A*>(p.scores) + n * p.k;
  const List<A> candidates = splits.list(0, n), best = {reinterpret_cast<Key<A>*>(scores), p.indices + n * p.k};
  if (Group::rank() == 0) gathered = 0;
  const Candidate<A> last = splits.template last_of_query<Group>(n);
  Group::sync();
  for (int64_t i = Group::rank(); i < splits.places(); i += Group::kSize) {
    const Candidate<A> mine = candidates.at(i);
    if (mine.key && !last.better_than(mine)) best.set(int64_t(atomicAdd(&gathered, 1)), mine);
  }
  Group::sync();
  const int64_t found = int64_t(gathered);
  sort_best_first<Group>(best, found);
  for (int64_t i = Group::rank(); i < p.k; i += Group::kSize) {
    scores[i] = score_of<A>(i < found ? best.keys[i] : 0, p.largest);
    if (i >= found) p.indices[n * p.k + i] = -1;  // no candidate is left for this place
  }
}

constexpr int64_t kPlacesOfWarp =
    1024;  // that a warp merges alone: a block would wait for its barriers most of the time

template <class A>
void launch_merge(const TopK& p, const Splits<A>& splits, Stream stream) {
  const auto launch_for = [&](auto kernel, int64_t groups) {
    launch("topk_merge_kernel", kernel, {ceil_div(p.query.rows, groups), 1}, 0, stream, p, splits);
  };
  if (splits.places() <= kPlacesOfWarp) {
    launch_for(topk_merge_kernel<OneWarp, A>, kWarps);
  } else {
    launch_for(topk_merge_kernel<OneBlock, A>, 1);
  }
}

}  // namespace
}  // namespace dissim
