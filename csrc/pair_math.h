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

// E3: 2 sgn(t) by comparison, 0 at t = 0 and at NaN. Callers halve the factor it is multiplied with.
template <class A>
DISSIM_INLINE Vector<A> twice_sign(Vector<A> t) {
  return where<A>(t > 0, broadcast<A>(2)) - where<A>(t < 0, broadcast<A>(2));
}

// The same where t is never -0 nor NaN: vpsignd takes +2.0f (0x40000000) through t's sign; its two's complement
// 0xc0000000 is -2.0f, and t = +0 gives 0.
template <class A>
DISSIM_INLINE Vector<A> twice_sign_finite(Vector<A> t) {
  return twice_sign<A>(t);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
DISSIM_INLINE Vector<float> twice_sign_finite<float>(Vector<float> t) {
  return (Vector<float>)_mm256_sign_epi32(_mm256_set1_epi32(0x40000000), (__m256i)t);
}
#endif

}  // namespace
}  // namespace dissim
