// One vector type at the width of the instruction set this file is compiled for, in GCC and Clang's portable vector
// extension: the same source gives AVX-512, AVX2, NEON and plain code. Everything lives in an unnamed namespace and
// no standard-library template is used, so that no function compiled for one instruction set is merged by the linker
// with its twin of another.
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

// Storage types of the half formats; float and double store themselves.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

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
  static constexpr int32_t magnitude = 0x7fffffff;
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t scalar;
  typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t magnitude = 0x7fffffffffffffff;
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

// Stores a vector at an aligned place past the caches, which read what is stored to only to have it overwritten. It is
// seen by others after a finish_streams() of the same thread.
DISSIM_INLINE void stream(void* to, const void* from) {
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

DISSIM_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class A>
DISSIM_INLINE Vector<A> broadcast(A x) {
  return x - Vector<A>{};  // x - 0: keeps every x, -0 too
}

// What follows reads `*from` for every lane. With AVX-512 the instruction that needs it broadcasts as it loads: a
// broadcast of its own takes a place in Zen 4's arithmetic, and is what compilers make of several uses.
#if defined(__AVX512F__)
#define DISSIM_EVERY_LANE(instruction, ...)                  \
  if constexpr (sizeof(A) == 4)                              \
    asm(instruction "ps %2%{1to16%}, %1, %0" : __VA_ARGS__); \
  else                                                       \
    asm(instruction "pd %2%{1to8%}, %1, %0" : __VA_ARGS__)
#endif

// a - *from
template <class A>
DISSIM_INLINE Vector<A> minus(Vector<A> a, const A* from) {
#if defined(__AVX512F__)
  DISSIM_EVERY_LANE("vsub", "=v"(a) : "v"(a), "m"(*from));
  return a;
#else
  return a - broadcast<A>(*from);
#endif
}

// sum + a * *from
template <class A>
DISSIM_INLINE Vector<A> plus_product(Vector<A> sum, Vector<A> a, const A* from) {
#if defined(__AVX512F__)
  DISSIM_EVERY_LANE("vfmadd231", "+v"(sum) : "v"(a), "m"(*from));
  return sum;
#else
  return sum + a * broadcast<A>(*from);
#endif
}

template <class A>
struct GroupOf {
  typedef A type __attribute__((vector_size(16)));
};
template <class A>
using Group = typename GroupOf<A>::type;

// The 16-byte parts of a vector, added up.
template <class A>
DISSIM_INLINE Group<A> fold(Vector<A> v) {
  Group<A> parts[kVectorBytes / 16];
  memcpy(parts, &v, sizeof v);
#pragma GCC unroll 3
  for (int half = kVectorBytes / 32; half; half /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

template <class A>
DISSIM_INLINE A sum(Vector<A> v) {  // pairwise, in a fixed order
  const Group<A> four = fold<A>(v);
  if constexpr (sizeof(A) == 8)
    return four[0] + four[1];
  else
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// --- elements to and from the wide type -----------------------------------------------------------------------

#if defined(__aarch64__)
typedef __fp16 HalfFloat;  // GCC knows _Float16 in C++ from version 13 only
#elif !defined(__F16C__)
typedef _Float16 HalfFloat;
#endif

DISSIM_INLINE float to_acc(float x) { return x; }
DISSIM_INLINE double to_acc(double x) { return x; }
DISSIM_INLINE float to_acc(BFloat x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
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

// A vector of widened elements from contiguous storage.
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

// A vector's elements narrowed into contiguous storage.
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
  const Unsigned wide = (Unsigned)v, nan = (Unsigned)(v != v);
  const Unsigned rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16, quiet = (wide >> 16) | 0x40;
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

// Stores `count` elements, contiguous; what lies behind `from` up to a whole vector may be read.
template <class E>
DISSIM_INLINE void store_narrow(E* to, const Acc<E>* from, int64_t count) {
  constexpr int lanes = kLanes<Acc<E>>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store_narrow<E>(to + i, load<Acc<E>>(from + i));
  for (; i < count; ++i) to[i] = narrow<E>(from[i]);
}

// --- masks ----------------------------------------------------------------------------------------------------

// The integer lanes of a comparison narrow to nothing but 0 and -1, so `mask & bits of x` is "x where".
template <class A>
DISSIM_INLINE Vector<A> where(Integers<A> mask, Vector<A> x) {
  return (Vector<A>)(mask & (Integers<A>)x);
}

// One bit a lane of such a mask, the first lane lowest.
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

// The mask whose bits these are; bits above the lanes do not count.
template <class A>
DISSIM_INLINE Integers<A> lanes_of(uint64_t bits) {
  Integers<A> powers;
  for (int i = 0; i < kLanes<A>; ++i) powers[i] = 1 << i;
  const Integers<A> all = typename VectorOf<A>::scalar(bits) - Integers<A>{};
  return (all & powers) == powers;
}

}  // namespace
}  // namespace dissim
