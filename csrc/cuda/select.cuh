// The k best of a stream of scores. A warp appends what may be among them to a list that has room for more than k; when
// it is full, the k best stay. They are found by their k-th best, bit after bit of its key, and then of its index where
// keys tie: so the outcome does not depend on the order of offers, and k costs no more than a sort of what was offered.
#pragma once

#include "tile.cuh"

namespace dissim {

// Scores as unsigned integers whose order is that of the contract: 0 is no score, 1 is NaN, larger is better.
template <class A>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class A>
using Key = typename KeyOf<A>::type;

__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint64_t bits_of(double x) { return uint64_t(__double_as_longlong(x)); }
__device__ __forceinline__ float from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double from_bits(uint64_t bits) { return __longlong_as_double(int64_t(bits)); }
template <class A>
constexpr Key<A> kSign = Key<A>(1) << (8 * sizeof(A) - 1);

template <class A>
__device__ __forceinline__ Key<A> key_of(A score, bool largest) {
  if (score != score) return 1;
  const Key<A> bits = bits_of(A((largest ? score : -score) + A(0)));  // + 0: zeros of both signs tie
  return bits & kSign<A> ? ~bits : bits | kSign<A>;
}

template <class A>
__device__ __forceinline__ A score_of(Key<A> key, bool largest) {
  if (key <= 1) return from_bits(Key<A>(~Key<A>(0)));  // NaN
  const A score = from_bits(key & kSign<A> ? key & ~kSign<A> : ~key);
  return largest ? score : -score;
}

template <class A>
struct Candidate {
  Key<A> key;
  int64_t index;
  __device__ __forceinline__ bool better_than(const Candidate& other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

constexpr int64_t kNoIndex = INT64_MAX;

// A query's candidates in global memory.
template <class A>
struct List {
  Key<A>* keys;
  int64_t* indices;
  __device__ __forceinline__ Candidate<A> at(int64_t i) const { return {keys[i], indices[i]}; }
  __device__ __forceinline__ void set(int64_t i, const Candidate<A>& candidate) const {
    keys[i] = candidate.key;
    indices[i] = candidate.index;
  }
};

// Those who go over a list together: `sum` adds up what each of them found, for all; `sync` orders their memory.
struct OneWarp {
  static constexpr int kSize = kWarp;
  static __device__ __forceinline__ void sync() { __syncwarp(); }
  static __device__ __forceinline__ int rank() { return threadIdx.x % kWarp; }
  static __device__ __forceinline__ unsigned sum(unsigned found) { return __reduce_add_sync(kAll, found); }
};
struct OneBlock {
  static constexpr int kSize = kThreads;
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ int rank() { return threadIdx.x; }
  static __device__ __forceinline__ unsigned sum(unsigned found) {
    __shared__ unsigned of_warps[kWarps];
    found = __reduce_add_sync(kAll, found);
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = found;
    __syncthreads();
    unsigned total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += of_warps[warp];
    __syncthreads();
    return total;
  }
};

// The least good that a candidate may be to be among the k best of `count`, of which no two are equal and whose indices
// are below `rows`; its key is 0 where there are fewer than k. Reads the keys once for each of their bits, and both
// once for each bit of an index if the k-th best key is shared.
template <class Group, class A>
__device__ Candidate<A> last_of_best(const List<A>& list, int64_t count, int64_t k, int64_t rows) {
  const auto count_if = [&](const auto& predicate) {
    unsigned found = 0;
#pragma unroll 4
    for (int64_t i = Group::rank(); i < count; i += Group::kSize) found += predicate(i);
    return int64_t(Group::sum(found));
  };
  Key<A> key = 0;
#pragma unroll 1
  for (Key<A> bit = kSign<A>; bit; bit >>= 1) {
    const Key<A> higher = key | bit;
    const int64_t found = count_if([&](int64_t i) { return list.keys[i] >= higher; });
    if (found >= k) key = higher;
    if (found == k) return {key, kNoIndex};
  }
  if (key == 0) return {0, kNoIndex};
  int64_t index = 0, bit = 1;
  while (bit < rows) bit *= 2;
#pragma unroll 1
  for (; bit; bit /= 2) {
    const Candidate<A> end = {key, index + bit};
    if (count_if([&](int64_t i) { return list.at(i).better_than(end); }) < k) index += bit;
  }
  return {key, index};
}

// How far a list is filled, and what a candidate must be better than to be worth a place in it.
template <class A>
struct Selection {
  Candidate<A> last;
  int64_t count;
};
template <class A>
constexpr Selection<A> kNothingYet = {{0, kNoIndex}, 0};

// By a warp: leaves the k best of a list, in the order that they had.
template <class A>
__device__ void keep_best(const List<A>& list, Selection<A>& selection, int64_t k, int64_t rows) {
  const int lane = threadIdx.x % kWarp;
  const int64_t count = selection.count;
  selection = {last_of_best<OneWarp>(list, count, k, rows), 0};
#pragma unroll 1
  for (int64_t first = 0; first < count; first += kWarp) {
    const bool real = first + lane < count;
    const Candidate<A> mine = list.at(real ? first + lane : first);
    const bool kept = real && !selection.last.better_than(mine);
    const unsigned votes = __ballot_sync(kAll, kept);
    __syncwarp();  // all have read what is overwritten now
    if (kept) list.set(selection.count + __popc(votes & ((1u << lane) - 1)), mine);
    selection.count += __popc(votes);
  }
  __syncwarp();
}

// By a warp: every thread's candidate is offered or not. The list has room for k and a warp's candidates, or for all
// that will ever be offered.
template <class A>
__device__ __forceinline__ void offer(const List<A>& list, Selection<A>& selection, int64_t capacity, int64_t k,
                                      int64_t rows, const Candidate<A>& mine, bool offered) {
  unsigned offers = __ballot_sync(kAll, offered);
  if (!offers) return;
  if (selection.count + __popc(offers) > capacity) {
    keep_best(list, selection, k, rows);
    offered = offered && mine.better_than(selection.last);
    offers = __ballot_sync(kAll, offered);
  }
  if (offered) list.set(selection.count + __popc(offers & ((1u << threadIdx.x % kWarp) - 1)), mine);
  selection.count += __popc(offers);
  __syncwarp();
}

// Best first. A bitonic network whose pairs all have the better one first, so that places from `count` on
// are as if filled with the worst.
template <class Group, class A>
__device__ __forceinline__ void sort_best_first(const List<A>& list, int64_t count) {
#pragma unroll 1
  for (int64_t size = 2; size < 2 * count; size *= 2) {
#pragma unroll 1
    for (int64_t step = size / 2; step; step /= 2) {
#pragma unroll 1
      for (int64_t i = Group::rank(); 2 * i - (i & (step - 1)) < count; i += Group::kSize) {
        const int64_t a = 2 * i - (i & (step - 1)), b = 2 * step == size ? a ^ (size - 1) : a + step;
        if (b >= count) continue;
        const Candidate<A> first = list.at(a), second = list.at(b);
        if (!second.better_than(first)) continue;
        list.set(a, second);
        list.set(b, first);
      }
      Group::sync();
    }
  }
}

}  // namespace dissim
