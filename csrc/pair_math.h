// |q - r| and its sign, the value and the derivative of one dimension of a pair: the only place they are written.
#pragma once

#include "cpu/simd.h"

namespace dissim {
namespace {

// E1: |t| for t = q - r.
template <class A>
DISSIM_INLINE Vector<A> magnitude(Vector<A> t) {
  return (Vector<A>)((Integers<A>)t & VectorOf<A>::abs_mask);
}

#if defined(__aarch64__)
// The compiler makes one instruction of this and the subtraction before it.
template <>
DISSIM_INLINE Vector<float> magnitude<float>(Vector<float> t) {
  return (Vector<float>)vabsq_f32((float32x4_t)t);
}
template <>
DISSIM_INLINE Vector<double> magnitude<double>(Vector<double> t) {
  return (Vector<double>)vabsq_f64((float64x2_t)t);
}
#endif

// E7: max(a, b). Of a NaN and a number it may be either.
template <class A>
DISSIM_INLINE Vector<A> greater(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}
template <class A>
DISSIM_INLINE Vector<A> greater(Vector<A> a, const A* from) {  // of *from in every lane
#if defined(__AVX512F__)
  DISSIM_BROADCAST_OPERAND("vmax", "=v"(a) : "v"(a), "m"(*from));
  return a;
#else
  return greater<A>(broadcast<A>(*from), a);
#endif
}

// E3: kSignUnit * sgn(t) by comparison, 0 at t = 0 and at NaN. Whoever reads a sum of these divides by kSignUnit,
// which is 1 or 2, so nothing is rounded.
template <class A>
constexpr A kSignUnit = 1;

template <class A>
DISSIM_INLINE Vector<A> sign(Vector<A> t) {
  return where<A>(t > 0, broadcast<A>(kSignUnit<A>)) - where<A>(t < 0, broadcast<A>(kSignUnit<A>));
}

// The same for t = kSignScale (q - r) of usual q and r, where that is faster: 0 but not -0, or not below kLeastUsual
// and no larger than can be scaled.
template <class A>
constexpr bool kUsualIsFaster = false;
template <class A>
constexpr A kSignScale = 2;
template <class A>
constexpr A kLeastUsual = 0;
template <class A>
DISSIM_INLINE Vector<A> sign_of_usual(Vector<A> t) {
  return sign<A>(t);
}

#if defined(__AVX512F__)
// vfixupimm classifies and answers from a table in one instruction: NaN, NaN, 0, 1, -Inf, Inf, negative, positive
// (lowest nibble first) give 0, 0, 0, 1, -1, 1, -1, 1.
template <>
DISSIM_INLINE Vector<float> sign<float>(Vector<float> t) {
  return (Vector<float>)_mm512_fixupimm_ps(_mm512_setzero_ps(), (__m512)t, _mm512_set1_epi32(int(0xa9a9a888)), 0);
}
template <>
DISSIM_INLINE Vector<double> sign<double>(Vector<double> t) {
  return (Vector<double>)_mm512_fixupimm_pd(_mm512_setzero_pd(), (__m512d)t, _mm512_set1_epi64(0xa9a9a888), 0);
}
// vrange takes the smaller magnitude of t and 1 and the sign of t, where Zen 4 has room: vfixupimm shares the pipes of
// multiply-adds. Usual values differ by 0 or by a unit of the last place, which scaled is not below 1.
template <>
constexpr bool kUsualIsFaster<float> = true;
template <>
constexpr bool kUsualIsFaster<double> = true;
template <>
constexpr float kSignScale<float> = 0x1p60f;
template <>
constexpr double kSignScale<double> = 0x1p500;
template <>
constexpr float kLeastUsual<float> = 0x1p-36f;
template <>
constexpr double kLeastUsual<double> = 0x1p-440;
template <>
DISSIM_INLINE Vector<float> sign_of_usual<float>(Vector<float> t) {
  return (Vector<float>)_mm512_range_ps((__m512)t, _mm512_set1_ps(1), 2);
}
template <>
DISSIM_INLINE Vector<double> sign_of_usual<double>(Vector<double> t) {
  return (Vector<double>)_mm512_range_pd((__m512d)t, _mm512_set1_pd(1), 2);
}
#elif defined(__AVX2__)
// vpsignd takes +2.0f (0x40000000) through t's sign: its two's complement 0xc0000000 is -2.0f, and t = +0 gives 0.
template <>
constexpr float kSignUnit<float> = 2;
template <>
constexpr bool kUsualIsFaster<float> = true;
template <>
DISSIM_INLINE Vector<float> sign_of_usual<float>(Vector<float> t) {
  return (Vector<float>)_mm256_sign_epi32(_mm256_set1_epi32(0x40000000), (__m256i)t);
}
#endif

}  // namespace
}  // namespace dissim
