// |q - r| and its sign, the value and the derivative of one dimension of a pair: the only place they are written.
#pragma once

#include "cpu/simd.h"

namespace dissim {
namespace {

// E1: |t| for t = q - r.
template <class A>
DISSIM_INLINE Vector<A> magnitude(Vector<A> t) {
  return (Vector<A>)((Integers<A>)t & VectorOf<A>::magnitude);
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
  return where<A>(a > b, a) + where<A>(~(a > b), b);
}

#if defined(__AVX512F__)
template <>
DISSIM_INLINE Vector<float> greater<float>(Vector<float> a, Vector<float> b) {
  return (Vector<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
template <>
DISSIM_INLINE Vector<double> greater<double>(Vector<double> a, Vector<double> b) {
  return (Vector<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
}
#elif defined(__AVX2__)
template <>
DISSIM_INLINE Vector<float> greater<float>(Vector<float> a, Vector<float> b) {
  return (Vector<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
template <>
DISSIM_INLINE Vector<double> greater<double>(Vector<double> a, Vector<double> b) {
  return (Vector<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
#elif defined(__SSE2__)
template <>
DISSIM_INLINE Vector<float> greater<float>(Vector<float> a, Vector<float> b) {
  return (Vector<float>)_mm_max_ps((__m128)a, (__m128)b);
}
template <>
DISSIM_INLINE Vector<double> greater<double>(Vector<double> a, Vector<double> b) {
  return (Vector<double>)_mm_max_pd((__m128d)a, (__m128d)b);
}
#endif

// E3: kSignUnit * sgn(t) by comparison, 0 at t = 0 and at NaN. Whoever reads a sum of these divides by kSignUnit,
// which is 1 or 2, so nothing is rounded.
template <class A>
constexpr A kSignUnit = 1;

template <class A>
DISSIM_INLINE Vector<A> sign(Vector<A> t) {
  return where<A>(t > 0, broadcast<A>(kSignUnit<A>)) - where<A>(t < 0, broadcast<A>(kSignUnit<A>));
}

// The same for t that is never -0 nor NaN, where that is faster.
template <class A>
constexpr bool kFiniteIsFaster = false;
template <class A>
DISSIM_INLINE Vector<A> sign_of_finite(Vector<A> t) {
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
#elif defined(__AVX2__)
// vpsignd takes +2.0f (0x40000000) through t's sign: its two's complement 0xc0000000 is -2.0f, and t = +0 gives 0.
template <>
constexpr float kSignUnit<float> = 2;
template <>
constexpr bool kFiniteIsFaster<float> = true;
template <>
DISSIM_INLINE Vector<float> sign_of_finite<float>(Vector<float> t) {
  return (Vector<float>)_mm256_sign_epi32(_mm256_set1_epi32(0x40000000), (__m256i)t);
}
#endif

}  // namespace
}  // namespace dissim
