// The tensor-core instruction mma.m16n8k16: c += a b with a [16, 16] and b [16, 8] in half precision, c [16, 8] in
// float32. The three matrices are spread over the lanes of a warp. Lane 4 g + t, with g = 0..7 and t = 0..3, holds
//
//   a[0], a[1]   columns 2t, 2t + 1   of the rows g and g + 8          (an unsigned is two halves)
//   a[2], a[3]   columns 2t + 8, 2t + 9   of the rows g and g + 8
//   b0, b1       rows 2t, 2t + 1 and rows 2t + 8, 2t + 9   of column g
//   c[0], c[1]   columns 2t, 2t + 1   of row g
//   c[2], c[3]   columns 2t, 2t + 1   of row g + 8
#pragma once

#include <type_traits>

#include "tile.cuh"

namespace dissim {

// Two halves in one register.
template <class E>
struct Half2Of;
template <>
struct Half2Of<__half> {
  using type = __half2;
};
template <>
struct Half2Of<__nv_bfloat16> {
  using type = __nv_bfloat162;
};

// The maximum of two halves, and of eight, element by element. Of a NaN and a number it returns the number.
template <class E>
__device__ __forceinline__ unsigned max_of_halves(unsigned a, unsigned b) {
  using Half2 = typename Half2Of<E>::type;
  Half2 x, y;
  memcpy(&x, &a, sizeof(a));
  memcpy(&y, &b, sizeof(b));
  x = __hmax2(x, y);
  memcpy(&a, &x, sizeof(a));
  return a;
}
template <class E>
__device__ __forceinline__ uint4 max_of_halves(const uint4& a, const uint4& b) {
  return {max_of_halves<E>(a.x, b.x), max_of_halves<E>(a.y, b.y), max_of_halves<E>(a.z, b.z),
          max_of_halves<E>(a.w, b.w)};
}

#ifndef DISSIM_CUDA_ON_HOST
template <class E>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<E, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
#else
// The sum as tensor cores of Hopper compute it, by measurements (Khattak and Mikaitis, arXiv 2512.07004; earlier: Fasi
// et al., PeerJ CS 7:e330). Products are exact. All terms are aligned to the largest exponent and truncated two bits
// below the last bit of a float32 number, and the sum is truncated to float32. NVIDIA documents none of this.
inline float truncated_sum(const double (&terms)[17]) {
  double max_term = 0, sum = 0;
  for (double term : terms)
    if (std::isfinite(term)) max_term = std::fmax(max_term, std::abs(term));
  const double last_bit = max_term > 0 ? std::ldexp(1, std::ilogb(max_term) - 25) : 1;
  for (double term : terms) sum += std::trunc(term / last_bit) * last_bit;
  const float nearest = float(sum);
  return std::isfinite(nearest) && std::abs(double(nearest)) > std::abs(sum) ? std::nextafter(nearest, 0.f) : nearest;
}

template <class E>
void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  static unsigned fragments[kWarps][kWarp][6];  // of every lane: a[0..3], b0, b1
  unsigned(*const warp)[6] = fragments[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  memcpy(warp[lane], a, sizeof(a));
  warp[lane][4] = b0;
  warp[lane][5] = b1;
  __syncwarp();
  const auto half = [](unsigned two_halves, int i) {
    E x;
    const uint16_t bits = uint16_t(two_halves >> 16 * i);
    memcpy(&x, &bits, sizeof(x));
    return double(to_acc(x));
  };
  for (int i = 0; i < 4; ++i) {
    const int high_row = i / 2, column = 2 * t + i % 2;  // c[i] is in row g + 8 high_row
    double terms[17];
    for (int k = 0; k < 16; ++k) {
      const unsigned a_pair = warp[4 * g + k % 8 / 2][high_row + k / 8 * 2];
      const unsigned b_pair = warp[4 * column + k % 8 / 2][4 + k / 8];
      terms[k] = half(a_pair, k % 2) * half(b_pair, k % 2);
    }
    terms[16] = c[i];
    c[i] = truncated_sum(terms);
  }
  __syncwarp();
}
#endif

// c += a b over 32 columns of a and rows of b: two instructions. Lane 4 g + t passes the eight consecutive columns
// 8 t to 8 t + 7, which are one 16-byte load: `low` of a's row g, `high` of a's row g + 8, `b` of b's column g.
//
// The instructions see these columns in another order. That changes no product, because a and b use the same order:
// every column of a meets its row of b.
//
//   dimension 8 t + ...    0, 1      2, 3      4, 5      6, 7
//   register of uint4      x         y         z         w
//   instruction            first     first     second    second
//   column of a in it      2t        2t + 8    2t        2t + 8      (and the next)
template <class E>
__device__ __forceinline__ void mma_m16n8k32(float (&c)[4], const uint4& low, const uint4& high, const uint4& b) {
  const unsigned first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
  mma_m16n8k16<E>(c, first, b.x, b.y);
  mma_m16n8k16<E>(c, second, b.z, b.w);
}

}  // namespace dissim
