// A query's references in shares: each has a list of the k best of it, and a block merges a query's lists.
#pragma once

#include "select.cuh"

namespace dissim {
namespace {

constexpr int64_t kBlocks = 512;       // wanted in a grid: some for every multiprocessor of the largest devices
constexpr int64_t kCandidates = 8192;  // that merging a query compares with each other, if k allows

// Every share's lists: [shares][queries][k].
template <class A>
struct Shares {
  int count, tiles;  // shares of the references, tiles of a share
  int64_t queries, k;
  Key<A>* keys;
  int64_t* indices;

  int64_t bytes() const { return count * queries * k * int64_t(sizeof(int64_t) + sizeof(Key<A>)); }
  Shares at(void* workspace) const {
    int64_t* const first = static_cast<int64_t*>(workspace);
    return {count, tiles, queries, k, reinterpret_cast<Key<A>*>(first + count * queries * k), first};
  }
  __device__ __forceinline__ List<A> list(int64_t share, int64_t n) const {
    const int64_t at = (share * queries + n) * k;
    return {keys + at, indices + at};
  }
};

// Of queries and references that are scored in tiles of so many rows of either.
template <class A>
Shares<A> shares_of(const TopK& p, int64_t rows) {
  const int64_t tiles = most(1, blocks_of(p.reference.rows, rows)), blocks = most(1, blocks_of(p.query.rows, rows));
  const int64_t most_shares = most(8, kCandidates / most(1, p.k));
  const int64_t wanted = least(least(most_shares, blocks_of(kBlocks, blocks)), tiles);
  const int64_t each = blocks_of(tiles, wanted);
  return {int(blocks_of(tiles, each)), int(each), p.query.rows, p.k, nullptr, nullptr};
}

// By a block: calls visit(c, candidate, place, found) for each candidate c of a query's lists. Its place is the number
// of better ones, for no two are equal; `found` of all are none of those that hold a place while there is room.
template <class A, class Visit>
__device__ __forceinline__ void merge(const Shares<A>& shares, int64_t n, const Visit& visit) {
  const int64_t k = shares.k;
  for (int64_t c = threadIdx.x; c < shares.count * k; c += kThreads) {
    const List<A> own = shares.list(c / k, n);
    const Candidate<A> mine = {own.keys[c % k], own.indices[c % k]};
    int64_t place = 0, found = 0;
    for (int64_t share = 0; share < shares.count; ++share) {
      const List<A> list = shares.list(share, n);
      for (int64_t i = 0; i < k; ++i) {
        const Candidate<A> other = {list.keys[i], list.indices[i]};
        place += other.better_than(mine);
        found += other.key != 0;
      }
    }
    visit(c, mine, place, found);
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) topk_merge_kernel(TopK p, Shares<A> shares) {
  const int64_t n = blockIdx.x;
  A* const scores = static_cast<A*>(p.scores) + n * p.k;
  merge(shares, n, [&](int64_t c, const Candidate<A>& mine, int64_t place, int64_t found) {
    if (mine.key && place < p.k) {
      scores[place] = score_of<A>(mine.key, p.largest);
      p.indices[n * p.k + place] = mine.index;
    }
    if (c < p.k && c >= found) {  // no candidate is left for this place
      scores[c] = score_of<A>(0, p.largest);
      p.indices[n * p.k + c] = -1;
    }
  });
}

}  // namespace
}  // namespace dissim
