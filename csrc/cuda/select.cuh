// The k best of a stream of scores, kept by a warp in no order: what is offered replaces the worst while it is better,
// so the outcome does not depend on the order of offers.
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

// A query's k candidates in global memory, and which of them is the worst; while there is room, nothing, and `place` is
// the first free one.
template <class A>
struct List {
  Key<A>* keys;
  int64_t* indices;
};
template <class A>
struct Worst {
  Candidate<A> candidate;
  int64_t place;
  __device__ __forceinline__ bool room() const { return candidate.index == kNoIndex; }
};

template <class A>
__device__ __forceinline__ void clear_list(List<A> list, int64_t k) {  // by a warp
  for (int64_t i = threadIdx.x % kWarp; i < k; i += kWarp) {
    list.keys[i] = 0;
    list.indices[i] = kNoIndex;
  }
  __syncwarp();
}

template <class A>
__device__ Worst<A> worst_of(List<A> list, int64_t k) {  // by a warp; the same in all its threads
  Worst<A> worst = {{Key<A>(~Key<A>(0)), -1}, 0};
  for (int64_t i = threadIdx.x % kWarp; i < k; i += kWarp) {
    const Candidate<A> here = {list.keys[i], list.indices[i]};
    if (!here.better_than(worst.candidate)) worst = {here, i};
  }
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) {
    const Worst<A> other = {{__shfl_xor_sync(kAll, worst.candidate.key, step),
                             int64_t(__shfl_xor_sync(kAll, (long long)worst.candidate.index, step))},
                            int64_t(__shfl_xor_sync(kAll, (long long)worst.place, step))};
    if (worst.candidate.better_than(other.candidate)) worst = other;
  }
  return worst;
}

// By a warp: every thread's candidate is offered or not.
template <class A>
__device__ __forceinline__ void offer(List<A> list, int64_t k, Worst<A>& worst, const Candidate<A>& mine,
                                      bool offered) {
  const int lane = threadIdx.x % kWarp;
  unsigned offers = __ballot_sync(kAll, offered);
  if (offers && worst.room()) {  // take as many as there is room for, all at once
    const int64_t place = worst.place + __popc(offers & ((1u << lane) - 1));
    if (offered && place < k) {
      list.keys[place] = mine.key;
      list.indices[place] = mine.index;
    }
    worst.place = least(k, worst.place + __popc(offers));
    __syncwarp();
    if (worst.place == k) {
      worst = worst_of(list, k);
      __syncwarp();  // all have read the list before it changes again
    }
    offers = __ballot_sync(kAll, offered && place >= k);
  }
  for (; offers; offers &= offers - 1) {
    const int from = __ffs(offers) - 1;
    const Candidate<A> candidate = {__shfl_sync(kAll, mine.key, from),
                                    int64_t(__shfl_sync(kAll, (long long)mine.index, from))};
    if (!candidate.better_than(worst.candidate)) continue;
    if (lane == 0) {
      list.keys[worst.place] = candidate.key;
      list.indices[worst.place] = candidate.index;
    }
    __syncwarp();
    worst = worst_of(list, k);
    __syncwarp();
  }
}

}  // namespace dissim
