// The sign of a difference (E3) in one instruction, for values of a limited range. "Fast signs" in MATH.md derives the
// constants and proves that the results are right.
//
// `sign` of pair_math.h is right for any values. `fast_sign` costs one instruction. It is right for
//     t = kSignScale * q - kSignScale * r
// if every q and r is +0 or has a magnitude in [kFastSignMin, kFastSignMax]. The backward kernels use it as follows:
//   1. Packing a block of rows turns -0 into +0.
//   2. scale_for_fast_sign(block) multiplies the block by kSignScale if all its values are in range, and returns
//      `unscale`, the factor that restores the values: 1 / kSignScale, or 1 if the block was left as it is.
//   3. If both sides of a tile are scaled (can_use_fast_sign), the tile is computed with fast_sign. Otherwise each side
//      is multiplied by its `unscale`, which is exact, and the tile is computed with sign.
#pragma once

#include "../pair_math.h"

namespace dissim {
namespace {

// Whether this instruction set has a fast sign for the accumulator dtype A.
template <class A>
constexpr bool kHasFastSign = false;
template <class A>
constexpr A kSignScale = 2;
template <class A>
constexpr A kFastSignMin = 0;

template <class A>
DISSIM_INLINE Vector<A> fast_sign(Vector<A> t) {
  return sign<A>(t);
}

#if defined(__AVX512F__)
// vrange returns the smaller of |t| and 1 with the sign of t. Zen 4 executes it on pipes that multiply-adds leave free;
// the vfixupimm of `sign` competes with multiply-adds.
template <>
constexpr bool kHasFastSign<float> = true;
template <>
constexpr bool kHasFastSign<double> = true;
template <>
constexpr float kSignScale<float> = 0x1p60f;
template <>
constexpr double kSignScale<double> = 0x1p500;
template <>
constexpr float kFastSignMin<float> = 0x1p-36f;
template <>
constexpr double kFastSignMin<double> = 0x1p-440;
template <>
DISSIM_INLINE Vector<float> fast_sign<float>(Vector<float> t) {
  return (Vector<float>)_mm512_range_ps((__m512)t, _mm512_set1_ps(1), 2);
}
template <>
DISSIM_INLINE Vector<double> fast_sign<double>(Vector<double> t) {
  return (Vector<double>)_mm512_range_pd((__m512d)t, _mm512_set1_pd(1), 2);
}
#elif defined(__AVX2__)
// vpsignd gives 2.0f (0x40000000) the sign of the integer t: its two's complement 0xc0000000 is -2.0f, and 0 gives 0.
template <>
constexpr bool kHasFastSign<float> = true;
template <>
DISSIM_INLINE Vector<float> fast_sign<float>(Vector<float> t) {
  return (Vector<float>)_mm256_sign_epi32(_mm256_set1_epi32(0x40000000), (__m256i)t);
}
#endif

// The largest magnitude that stays finite when it is scaled.
template <class A>
constexpr A kFastSignMax = (sizeof(A) == 4 ? A(0x1p127) : A(0x1p1023)) / kSignScale<A>;

// A mask of the values that are 0 or in the range.
template <class A>
DISSIM_INLINE Integers<A> allows_fast_sign(Vector<A> v) {
  const Vector<A> size = magnitude<A>(v);
  return (size == 0) | ((size >= kFastSignMin<A>)&(size <= kFastSignMax<A>));
}

template <class A, int count>
DISSIM_INLINE bool all_allow_fast_sign(const Vector<A> (&v)[count]) {
  Integers<A> all = allows_fast_sign<A>(v[0]);
  for (int i = 1; i < count; ++i) all &= allows_fast_sign<A>(v[i]);
  return !bits<A>(~all);
}

// Step 2 above, for a block of `vectors` packed vectors.
template <class A>
A scale_for_fast_sign(A* packed, int64_t vectors) {
  if (!kHasFastSign<A>) return 1;
  Integers<A> all = ~Integers<A>{};
  for (int64_t i = 0; i < vectors * kLanes<A>; i += kLanes<A>) all &= allows_fast_sign<A>(load<A>(packed + i));
  if (bits<A>(~all)) return 1;
  for (int64_t i = 0; i < vectors * kLanes<A>; i += kLanes<A>)
    store<A>(packed + i, kSignScale<A> * load<A>(packed + i));
  return 1 / kSignScale<A>;
}

// Step 3 above. Without a fast sign, fast_sign is sign, and no multiplication by `unscale` is needed.
template <class A>
bool can_use_fast_sign(A query_unscale, A reference_unscale) {
  return !kHasFastSign<A> || (query_unscale != 1 && reference_unscale != 1);
}

}  // namespace
}  // namespace dissim
