// One dimension of a pair: its value |q - r| (E1), its derivative (E3) and the maximum of the max form (E7). Every CPU
// kernel takes them from here; cpu/fast_sign.h adds a faster derivative for values of a limited range.
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
// The compiler fuses this with the subtraction before it into one instruction.
template <>
DISSIM_INLINE Vector<float> magnitude<float>(Vector<float> t) {
  return (Vector<float>)vabsq_f32((float32x4_t)t);
}
template <>
DISSIM_INLINE Vector<double> magnitude<double>(Vector<double> t) {
  return (Vector<double>)vabsq_f64((float64x2_t)t);
}
#endif

// The maximum of the max form (E7). Of a NaN and a number it may return either.
template <class A>
DISSIM_INLINE Vector<A> maximum(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}
template <class A>
DISSIM_INLINE Vector<A> maximum(Vector<A> a, const A* from) {  // of a and *from in every lane
#if defined(__AVX512F__)
  DISSIM_BROADCAST_OPERAND("vmax", "=v"(a) : "v"(a), "m"(*from));
  return a;
#else
  return maximum<A>(broadcast<A>(*from), a);
#endif
}

// E3: kSignUnit * sgn(t), and 0 at t = 0 and at NaN. Sums of these are divided by kSignUnit at the end, which is exact:
// it is 1 or 2. It is 2 where the fast sign of cpu/fast_sign.h returns 2 sgn(t).
#if defined(__AVX2__) && !defined(__AVX512F__)
template <class A>
constexpr A kSignUnit = sizeof(A) == 4 ? 2 : 1;
#else
template <class A>
constexpr A kSignUnit = 1;
#endif

template <class A>
DISSIM_INLINE Vector<A> sign(Vector<A> t) {
  return where<A>(t > 0, broadcast<A>(kSignUnit<A>)) - where<A>(t < 0, broadcast<A>(kSignUnit<A>));
}

#if defined(__AVX512F__)
// vfixupimm classifies a number and looks up the result in a table, in one instruction. The table has a nibble for each
// class, lowest first: quiet NaN 0, signaling NaN 0, zero 0, one 1, -Inf -1, Inf 1, negative -1, positive 1.
template <>
DISSIM_INLINE Vector<float> sign<float>(Vector<float> t) {
  return (Vector<float>)_mm512_fixupimm_ps(_mm512_setzero_ps(), (__m512)t, _mm512_set1_epi32(int(0xa9a9a888)), 0);
}
template <>
DISSIM_INLINE Vector<double> sign<double>(Vector<double> t) {
  return (Vector<double>)_mm512_fixupimm_pd(_mm512_setzero_pd(), (__m512d)t, _mm512_set1_epi64(0xa9a9a888), 0);
}
#endif

}  // namespace
}  // namespace dissim
