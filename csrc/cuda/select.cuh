// The k best of a stream of scores, in no more time than a sort of the candidates.
//
// A warp appends the scores that may be among the k best to a candidate list in global memory, which has more than k
// slots. When the list is full, only its k best stay, and the k-th best becomes the threshold for later candidates:
//
//   state = {threshold: worse than everything, count: 0}
//   for each score:
//       if better than state.threshold:
//           if the list is full: keep_k_best              sets state.threshold
//           append
//
// The k-th best is found by a binary search over the bits of the key, and over the bits of the index where keys tie.
// The order (key, then index) is total, so the result does not depend on the order in which candidates arrive.
#pragma once

#include "tile.cuh"

namespace dissim {

// A key is an unsigned integer in the order of the contract: a larger key is a better score, 1 is NaN, 0 is no score.
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
constexpr Key<A> kSignBit = Key<A>(1) << (8 * sizeof(A) - 1);

// Floating-point bits are ordered like integers of sign and magnitude. Negative numbers are inverted and others get the
// sign bit, which makes the order that of unsigned integers.
template <class A>
__device__ __forceinline__ Key<A> score_to_key(A score, bool largest) {
  if (score != score) return 1;
  const Key<A> bits = bits_of(A((largest ? score : -score) + A(0)));  // + 0 turns -0 into 0, so that they tie
  return bits & kSignBit<A> ? ~bits : bits | kSignBit<A>;
}

template <class A>
__device__ __forceinline__ A key_to_score(Key<A> key, bool largest) {
  if (key <= 1) return from_bits(Key<A>(~Key<A>(0)));  // NaN
  const A score = from_bits(key & kSignBit<A> ? key & ~kSignBit<A> : ~key);
  return largest ? score : -score;
}

// A reference that may be among a query's k best.
template <class A>
struct Candidate {
  Key<A> key;
  int64_t index;
  __device__ __forceinline__ bool is_better_than(const Candidate& other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

constexpr int64_t kNoIndex = INT64_MAX;

// Candidates of one query, in global memory.
template <class A>
struct CandidateList {
  Key<A>* keys;
  int64_t* indices;
  __device__ __forceinline__ Candidate<A> load(int64_t i) const { return {keys[i], indices[i]}; }
  __device__ __forceinline__ void store(int64_t i, const Candidate<A>& candidate) const {
    keys[i] = candidate.key;
    indices[i] = candidate.index;
  }
};

// The threads that process a list together: a warp, or a block. `sum` adds up a value of all of them and returns the
// sum to all; `sync` makes their writes visible to one another.
struct WarpScope {
  static constexpr int kSize = kWarp;
  static __device__ __forceinline__ void sync() { __syncwarp(); }
  static __device__ __forceinline__ int rank() { return threadIdx.x % kWarp; }
  static __device__ __forceinline__ unsigned sum(unsigned value) { return __reduce_add_sync(kAllLanes, value); }
};
struct BlockScope {
  static constexpr int kSize = kThreads;
  static __device__ __forceinline__ void sync() { __syncthreads(); }
  static __device__ __forceinline__ int rank() { return threadIdx.x; }
  static __device__ __forceinline__ unsigned sum(unsigned value) {
    __shared__ unsigned warp_sums[kWarps];
    value = __reduce_add_sync(kAllLanes, value);
    if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = value;
    __syncthreads();
    unsigned total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[warp];
    __syncthreads();
    return total;
  }
};

// The k-th best of a list's first `count` candidates; one with key 0 if there are fewer than k. The candidates differ,
// and their indices are below `rows`. Reads all keys once per bit of a key. If the k-th best key is not unique, it also
// reads all candidates once per bit of an index.
//
//   key = 0
//   for bit from the highest to the lowest:
//       if at least k keys are >= key | bit: key |= bit
//   index = 0                                          only if more than k keys are >= key
//   for bit from the highest below 2 * rows to the lowest:
//       if fewer than k candidates are better than (key, index + bit): index += bit
template <class Scope, class A>
__device__ Candidate<A> kth_best(const CandidateList<A>& list, int64_t count, int64_t k, int64_t rows) {
  const auto count_if = [&](const auto& predicate) {
    unsigned matches = 0;
#pragma unroll 4
    for (int64_t i = Scope::rank(); i < count; i += Scope::kSize) matches += predicate(i);
    return int64_t(Scope::sum(matches));
  };
  Key<A> key = 0;
#pragma unroll 1
  for (Key<A> bit = kSignBit<A>; bit; bit >>= 1) {
    const Key<A> higher = key | bit;
    const int64_t matches = count_if([&](int64_t i) { return list.keys[i] >= higher; });
    if (matches >= k) key = higher;
    if (matches == k) return {key, kNoIndex};
  }
  if (key == 0) return {0, kNoIndex};
  int64_t index = 0, bit = 1;
  while (bit < rows) bit *= 2;
#pragma unroll 1
  for (; bit; bit /= 2) {
    const Candidate<A> limit = {key, index + bit};
    if (count_if([&](int64_t i) { return list.load(i).is_better_than(limit); }) < k) index += bit;
  }
  return {key, index};
}

// How many slots of a list are filled, and what a new candidate must be better than.
template <class A>
struct ListState {
  Candidate<A> threshold;
  int64_t count;
};
template <class A>
constexpr ListState<A> kEmptyList = {{0, kNoIndex}, 0};

// Removes all but the k best of a list, without changing their order. All lanes of a warp call this.
template <class A>
__device__ void keep_k_best(const CandidateList<A>& list, ListState<A>& state, int64_t k, int64_t rows) {
  const int lane = threadIdx.x % kWarp;
  const int64_t count = state.count;
  state = {kth_best<WarpScope>(list, count, k, rows), 0};
#pragma unroll 1
  for (int64_t first = 0; first < count; first += kWarp) {
    const bool exists = first + lane < count;
    const Candidate<A> mine = list.load(exists ? first + lane : first);
    const bool stays = exists && !state.threshold.is_better_than(mine);
    const unsigned votes = __ballot_sync(kAllLanes, stays);
    __syncwarp();  // all lanes have read before any lane overwrites
    if (stays) list.store(state.count + __popc(votes & ((1u << lane) - 1)), mine);
    state.count += __popc(votes);
  }
  __syncwarp();
}

// Appends the candidates of those lanes whose `valid` is true. All lanes of a warp call this. The list has at least
// k + kWarp slots, or a slot for every candidate that will ever be appended.
template <class A>
__device__ __forceinline__ void append(const CandidateList<A>& list, ListState<A>& state, int64_t capacity, int64_t k,
                                       int64_t rows, const Candidate<A>& mine, bool valid) {
  unsigned votes = __ballot_sync(kAllLanes, valid);
  if (!votes) return;
  if (state.count + __popc(votes) > capacity) {
    keep_k_best(list, state, k, rows);
    valid = valid && mine.is_better_than(state.threshold);
    votes = __ballot_sync(kAllLanes, valid);
  }
  if (valid) list.store(state.count + __popc(votes & ((1u << threadIdx.x % kWarp) - 1)), mine);
  state.count += __popc(votes);
  __syncwarp();
}

// Sorts the first `count` candidates, best first: a bitonic network in which every comparison puts the better candidate
// at the lower place. Then missing places up to the next power of two behave like the worst candidates, and comparisons
// with them are skipped.
template <class Scope, class A>
__device__ __forceinline__ void sort_best_first(const CandidateList<A>& list, int64_t count) {
#pragma unroll 1
  for (int64_t size = 2; size < 2 * count; size *= 2) {
#pragma unroll 1
    for (int64_t distance = size / 2; distance; distance /= 2) {
#pragma unroll 1
      for (int64_t i = Scope::rank(); 2 * i - (i & (distance - 1)) < count; i += Scope::kSize) {
        const int64_t a = 2 * i - (i & (distance - 1));
        const int64_t b = 2 * distance == size ? a ^ (size - 1) : a + distance;  // mirrored in the first step of a size
        if (b >= count) continue;
        const Candidate<A> first = list.load(a), second = list.load(b);
        if (!second.is_better_than(first)) continue;
        list.store(a, second);
        list.store(b, first);
      }
      Scope::sync();
    }
  }
}

}  // namespace dissim
