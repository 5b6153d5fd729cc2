// Sums of absolute differences (SAD) of bytes, kCodeGroup at a time: the arithmetic of the scan over codes.
#pragma once

#include <utility>

#include "simd.h"

namespace dissim {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef uint64_t SadSums __attribute__((vector_size(kVectorBytes)));  // one sum for each group of 8 bytes

// Each instruction set has a type SadPartial for sums whose lanes cannot overflow in kMaxSadAdditions calls of add_sad,
// and a function to_sad_sums that widens it. Both values of `saturating` give the same sums (processor.h).
#if defined(__aarch64__)
typedef uint16x8_t SadPartial;
constexpr int64_t kMaxSadAdditions = 128;  // of two differences in 16 bits: 128 * 2 * 255 < 2^16
template <bool saturating>
DISSIM_INLINE void add_sad(SadPartial& sums, Bytes a, Bytes b) {
  sums = vpadalq_u8(sums, vabdq_u8((uint8x16_t)a, (uint8x16_t)b));
}
DISSIM_INLINE SadSums to_sad_sums(SadPartial sums) { return (SadSums)vpaddlq_u32(vpaddlq_u16(sums)); }
#elif defined(__AVX512BW__)
typedef SadSums SadPartial;
constexpr int64_t kMaxSadAdditions = 32;  // the saturating addition has 16 bits: 32 * 8 * 255 < 2^16
template <bool saturating>
DISSIM_INLINE void add_sad(SadPartial& sums, Bytes a, Bytes b) {
  const __m512i sad = _mm512_sad_epu8((__m512i)a, (__m512i)b);
  sums = saturating ? (SadSums)_mm512_adds_epu16((__m512i)sums, sad) : sums + (SadSums)sad;
}
DISSIM_INLINE SadSums to_sad_sums(SadPartial sums) { return sums; }
#else
typedef SadSums SadPartial;
constexpr int64_t kMaxSadAdditions = INT64_MAX;
template <bool saturating>
DISSIM_INLINE void add_sad(SadPartial& sums, Bytes a, Bytes b) {
#if defined(__AVX2__)
  sums += (SadSums)_mm256_sad_epu8((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  sums += (SadSums)_mm_sad_epu8((__m128i)a, (__m128i)b);
#else
  for (int i = 0; i < kVectorBytes; ++i) sums[i / 8] += uint64_t(a[i] < b[i] ? b[i] - a[i] : a[i] - b[i]);
#endif
}
DISSIM_INLINE SadSums to_sad_sums(SadPartial sums) { return sums; }
#endif

DISSIM_INLINE Bytes load_bytes(const uint8_t* from) {
  Bytes v;
  memcpy(&v, from, sizeof v);
  return v;
}

// Eight bytes, repeated in every group of a vector.
DISSIM_INLINE Bytes repeat_group(const uint8_t* from) {
  uint64_t group;
  memcpy(&group, from, 8);
  return (Bytes)(group - SadSums{});
}

template <int... lane>
DISSIM_INLINE Integers<float> low_halves(SadSums a, SadSums b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector((Integers<float>)a, (Integers<float>)b, 2 * lane...);
}

// The sums of two vectors as one vector of int32. They fit, because D is below 2^19.
DISSIM_INLINE Integers<float> narrow_sums(SadSums a, SadSums b) {
  return low_halves(a, b, std::make_integer_sequence<int, kLanes<float>>{});
}

}  // namespace
}  // namespace dissim
