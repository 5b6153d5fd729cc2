// Sums of absolute differences of bytes, kCodeGroup at a time: the arithmetic of the scan over codes.
#pragma once

#include <utility>

#include "simd.h"

namespace dissim {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef uint64_t Sums __attribute__((vector_size(kVectorBytes)));  // one for each group of 8 bytes

// A Partial takes kSadSteps additions before one of its lanes can overflow; `total` gives it as Sums. Both ways to add
// give the same sums.
#if defined(__aarch64__)
typedef uint16x8_t Partial;
constexpr int64_t kSadSteps = 128;
template <bool saturating>
DISSIM_INLINE void add_sad(Partial& sums, Bytes a, Bytes b) {
  sums = vpadalq_u8(sums, vabdq_u8((uint8x16_t)a, (uint8x16_t)b));
}
DISSIM_INLINE Sums total(Partial sums) { return (Sums)vpaddlq_u32(vpaddlq_u16(sums)); }
#elif defined(__AVX512BW__)
typedef Sums Partial;
constexpr int64_t kSadSteps = 32;  // that fit in 16 bits, which the saturating addition adds
template <bool saturating>
DISSIM_INLINE void add_sad(Partial& sums, Bytes a, Bytes b) {
  const __m512i sad = _mm512_sad_epu8((__m512i)a, (__m512i)b);
  sums = saturating ? (Sums)_mm512_adds_epu16((__m512i)sums, sad) : sums + (Sums)sad;
}
DISSIM_INLINE Sums total(Partial sums) { return sums; }
#else
typedef Sums Partial;
constexpr int64_t kSadSteps = INT64_MAX;
template <bool saturating>
DISSIM_INLINE void add_sad(Partial& sums, Bytes a, Bytes b) {
#if defined(__AVX2__)
  sums += (Sums)_mm256_sad_epu8((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  sums += (Sums)_mm_sad_epu8((__m128i)a, (__m128i)b);
#else
  for (int i = 0; i < kVectorBytes; ++i) sums[i / 8] += uint64_t(a[i] < b[i] ? b[i] - a[i] : a[i] - b[i]);
#endif
}
DISSIM_INLINE Sums total(Partial sums) { return sums; }
#endif

DISSIM_INLINE Bytes load_bytes(const uint8_t* from) {
  Bytes v;
  memcpy(&v, from, sizeof v);
  return v;
}

// Eight bytes, repeated.
DISSIM_INLINE Bytes repeat_group(const uint8_t* from) {
  uint64_t group;
  memcpy(&group, from, 8);
  return (Bytes)(group - Sums{});
}

template <int... lane>
DISSIM_INLINE Integers<float> low_halves(Sums a, Sums b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector((Integers<float>)a, (Integers<float>)b, 2 * lane...);
}

// The sums of two vectors, which fit in 31 bits, as one vector of int32.
DISSIM_INLINE Integers<float> narrow_sums(Sums a, Sums b) {
  return low_halves(a, b, std::make_integer_sequence<int, kLanes<float>>{});
}

}  // namespace
}  // namespace dissim
