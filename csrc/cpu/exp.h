// exp of a vector, within 2 units in the last place: exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2.
#pragma once

#include "simd.h"

namespace dissim {
namespace {

// ln 2 is ln2_high + ln2_low: a product of n and ln2_high is exact. Adding `rounder` rounds to an integer, which is
// then in the low bits. Below `min` the result is 0, above `max` infinite.
template <class A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float inv_ln2 = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr float rounder = 0x1.8p23f, min = -87.3365479f, max = 88.7228394f;
  static constexpr int terms = 8, mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct ExpConstants<double> {
  static constexpr double inv_ln2 = 1.4426950408889634, ln2_high = 0.69314718036912382,
                          ln2_low = 1.9082149292705877e-10;
  static constexpr double rounder = 0x1.8p52, min = -708.39641853226408, max = 709.78271289338397;
  static constexpr int terms = 14, mantissa_bits = 52, exponent_bias = 1023;
};

// The Taylor polynomial of exp(r), whose first dropped term is below a quarter of a rounding.
template <class A>
DISSIM_INLINE Vector<A> exp_near_0(Vector<A> r) {
  constexpr double inv_factorials[] = {
      1,          1,           1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  constexpr int terms = ExpConstants<A>::terms;
  Vector<A> sum = broadcast<A>(A(inv_factorials[terms - 1]));
#pragma GCC unroll 14
  for (int i = terms - 2; i >= 0; --i) sum = sum * r + A(inv_factorials[i]);
  return sum;
}

// NaN stays NaN.
template <class A>
DISSIM_INLINE Vector<A> exp(Vector<A> x) {
  using C = ExpConstants<A>;
  const Integers<A> overflows = x > C::max, tiny = x < C::min;
  const Vector<A> shifted = x * C::inv_ln2 + C::rounder, n = shifted - C::rounder;
  const Vector<A> r = (x - n * C::ln2_high) - n * C::ln2_low;
  // 2^n in two factors: n can be one more than the largest exponent.
  const Integers<A> exponent = (Integers<A>)shifted - (Integers<A>)broadcast<A>(C::rounder), half = exponent >> 1;
  const auto power = [](Integers<A> e) { return (Vector<A>)((e + C::exponent_bias) << C::mantissa_bits); };
  const Vector<A> result = exp_near_0<A>(r) * power(half) * power(exponent - half);
  const Vector<A> infinite = broadcast<A>(A(__builtin_inf()));
  return where<A>(~tiny & ~overflows, result) + where<A>(overflows, infinite);
}

}  // namespace
}  // namespace dissim
