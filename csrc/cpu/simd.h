// A vector type of the width of the instruction set that this file is compiled for, in the portable vector extension of
// GCC and Clang: the same source gives AVX-512, AVX2, NEON and baseline code.
//
// Everything is in an unnamed namespace and no standard-library template is used. Otherwise the linker would merge a
// function compiled for one instruction set with the same function compiled for another.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../dissim.h"

namespace dissim {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// How rows store float16 and bfloat16; float and double are stored as they are.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// The accumulator dtype of an element dtype E.
template <class E>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class E>
using Acc = typename AccOf<E>::type;

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t scalar;
  typedef int32_t integer __attribute__((vector_size(kVectorBytes)));
  static constexpr int32_t abs_mask = 0x7fffffff;
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t scalar;
  typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t abs_mask = 0x7fffffffffffffff;
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
using Integers = typename VectorOf<A>::integer;
template <class A>
constexpr int kLanes = kVectorBytes / sizeof(A);

#define DISSIM_INLINE inline __attribute__((always_inline))

template <class A>
DISSIM_INLINE Vector<A> load(const A* from) {
  Vector<A> v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class A>
DISSIM_INLINE void store(A* to, Vector<A> v) {
  memcpy(to, &v, sizeof v);
}

// Stores a vector to an aligned address with a non-temporal store: the cache line is not read first, and it does not
// displace others. Other threads see it after a store_fence() of this thread.
DISSIM_INLINE void store_nontemporal(void* to, const void* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  memcpy(to, from, kVectorBytes);
#endif
}

DISSIM_INLINE void store_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class A>
DISSIM_INLINE Vector<A> broadcast(A x) {
  return x - Vector<A>{};  // x - 0 is x for every x, also for -0
}

// The functions below take `*from` in every lane. AVX-512 instructions can broadcast an operand from memory. Compilers
// use a separate broadcast instead if the value is used several times, which costs an arithmetic instruction on Zen 4.
#if defined(__AVX512F__)
#define DISSIM_BROADCAST_OPERAND(instruction, ...)           \
  if constexpr (sizeof(A) == 4)                              \
    asm(instruction "ps %2%{1to16%}, %1, %0" : __VA_ARGS__); \
  else                                                       \
    asm(instruction "pd %2%{1to8%}, %1, %0" : __VA_ARGS__)
#endif

// a - *from
template <class A>
DISSIM_INLINE Vector<A> subtract(Vector<A> a, const A* from) {
#if defined(__AVX512F__)
  DISSIM_BROADCAST_OPERAND("vsub", "=v"(a) : "v"(a), "m"(*from));
  return a;
#else
  return a - broadcast<A>(*from);
#endif
}

// sum + a * *from
template <class A>
DISSIM_INLINE Vector<A> multiply_add(Vector<A> sum, Vector<A> a, const A* from) {
#if defined(__AVX512F__)
  DISSIM_BROADCAST_OPERAND("vfmadd231", "+v"(sum) : "v"(a), "m"(*from));
  return sum;
#else
  return sum + a * broadcast<A>(*from);
#endif
}

// A vector of 128 bits.
template <class A>
struct Vector128Of {
  typedef A type __attribute__((vector_size(16)));
};
template <class A>
using Vector128 = typename Vector128Of<A>::type;

// The sum of the 128-bit parts of a vector.
template <class A>
DISSIM_INLINE Vector128<A> fold(Vector<A> v) {
  Vector128<A> parts[kVectorBytes / 16];
  memcpy(parts, &v, sizeof v);
#pragma GCC unroll 3
  for (int half = kVectorBytes / 32; half; half /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

template <class A>
DISSIM_INLINE A sum(Vector<A> v) {  // pairwise, in a fixed order
  const Vector128<A> lanes = fold<A>(v);
  if constexpr (sizeof(A) == 8)
    return lanes[0] + lanes[1];
  else
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// --- conversions between the element dtype and the accumulator dtype ---------------------------------------------

#if defined(__aarch64__)
typedef __fp16 HalfFloat;  // GCC has _Float16 in C++ only from version 13 on
#elif !defined(__F16C__)
typedef _Float16 HalfFloat;
#endif

DISSIM_INLINE float to_acc(float x) { return x; }
DISSIM_INLINE double to_acc(double x) { return x; }
DISSIM_INLINE float to_acc(BFloat x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
DISSIM_INLINE float to_acc(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  HalfFloat half;
  memcpy(&half, &x, 2);
  return float(half);
#endif
}

template <class E>
DISSIM_INLINE E narrow(Acc<E> x);
template <>
DISSIM_INLINE float narrow<float>(float x) {
  return x;
}
template <>
DISSIM_INLINE double narrow<double>(double x) {
  return x;
}
template <>
DISSIM_INLINE BFloat narrow<BFloat>(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
DISSIM_INLINE Half narrow<Half>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, 0))};
#else
  HalfFloat half = HalfFloat(x);
  Half bits;
  memcpy(&bits, &half, 2);
  return bits;
#endif
}

// Loads contiguous elements as a vector of the accumulator dtype.
template <class E>
DISSIM_INLINE Vector<Acc<E>> load_acc(const E* from) {
  using A = Acc<E>;
  A lanes[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = to_acc(from[i]);
  return load<A>(lanes);
}
template <>
DISSIM_INLINE Vector<float> load_acc<float>(const float* from) {
  return load<float>(from);
}
template <>
DISSIM_INLINE Vector<double> load_acc<double>(const double* from) {
  return load<double>(from);
}
template <>
DISSIM_INLINE Vector<float> load_acc<BFloat>(const BFloat* from) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  Bits bits;
  memcpy(&bits, from, sizeof bits);
  return (Vector<float>)(__builtin_convertvector(bits, Integers<float>) << 16);
}
#if defined(__AVX512F__)
template <>
DISSIM_INLINE Vector<float> load_acc<Half>(const Half* from) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
#elif defined(__F16C__)
template <>
DISSIM_INLINE Vector<float> load_acc<Half>(const Half* from) {
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
#endif

// Stores a vector of the accumulator dtype as contiguous elements.
template <class E>
DISSIM_INLINE void store_narrow(E* to, Vector<Acc<E>> v) {
  for (int i = 0; i < kLanes<Acc<E>>; ++i) to[i] = narrow<E>(v[i]);
}
template <>
DISSIM_INLINE void store_narrow<float>(float* to, Vector<float> v) {
  store<float>(to, v);
}
template <>
DISSIM_INLINE void store_narrow<double>(double* to, Vector<double> v) {
  store<double>(to, v);
}
template <>
DISSIM_INLINE void store_narrow<BFloat>(BFloat* to, Vector<float> v) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Unsigned __attribute__((vector_size(kVectorBytes)));
  const Unsigned value = (Unsigned)v, nan = (Unsigned)(v != v);
  const Unsigned rounded = (value + 0x7fff + ((value >> 16) & 1)) >> 16, quiet = (value >> 16) | 0x40;
  const Bits narrowed = __builtin_convertvector((nan & quiet) | (~nan & rounded), Bits);
  memcpy(to, &narrowed, sizeof narrowed);
}
#if defined(__AVX512F__)
template <>
DISSIM_INLINE void store_narrow<Half>(Half* to, Vector<float> v) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, 0));
}
#elif defined(__F16C__)
template <>
DISSIM_INLINE void store_narrow<Half>(Half* to, Vector<float> v) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, 0));
}
#endif

// Stores `count` contiguous elements.
template <class E>
DISSIM_INLINE void store_narrow(E* to, const Acc<E>* from, int64_t count) {
  constexpr int lanes = kLanes<Acc<E>>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store_narrow<E>(to + i, load<Acc<E>>(from + i));
  for (; i < count; ++i) to[i] = narrow<E>(from[i]);
}

// --- masks ----------------------------------------------------------------------------------------------------

// A comparison of vectors gives a mask: an integer per lane, -1 where it is true and 0 elsewhere.

// x where the mask is true, 0 elsewhere.
template <class A>
DISSIM_INLINE Vector<A> where(Integers<A> mask, Vector<A> x) {
  return (Vector<A>)(mask & (Integers<A>)x);
}

// One bit per lane of a mask, lane 0 lowest.
template <class A>
DISSIM_INLINE uint32_t bits(Integers<A> mask) {
#if defined(__AVX512F__)
  return sizeof(A) == 4 ? _mm512_movepi32_mask((__m512i)mask) : _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  return sizeof(A) == 4 ? _mm256_movemask_ps((__m256)mask) : _mm256_movemask_pd((__m256d)mask);
#elif defined(__SSE2__)
  return sizeof(A) == 4 ? _mm_movemask_ps((__m128)mask) : _mm_movemask_pd((__m128d)mask);
#else
  uint32_t all = 0;
  for (int i = 0; i < kLanes<A>; ++i) all |= uint32_t(mask[i] & 1) << i;
  return all;
#endif
}

// The inverse of `bits`: the mask of the lowest bits, one per lane.
template <class A>
DISSIM_INLINE Integers<A> mask_of_bits(uint64_t bits) {
  Integers<A> powers;
  for (int i = 0; i < kLanes<A>; ++i) powers[i] = 1 << i;
  const Integers<A> all = typename VectorOf<A>::scalar(bits) - Integers<A>{};
  return (all & powers) == powers;
}

}  // namespace
}  // namespace dissim
