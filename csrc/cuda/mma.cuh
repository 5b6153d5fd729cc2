// Matrix units: c += a b for a [16, 16] and b [16, 8] of halves, c [16, 8] of floats, held by a warp.
//
// Lane 4 g + t holds of a the columns 2t, 2t+1 of the rows g and g + 8 in a[0], a[1], and 2t+8, 2t+9 in a[2], a[3];
// of b the rows 2t, 2t+1 (b[0]) and 2t+8, 2t+9 (b[1]) of column g; of c the columns 2t, 2t+1 of the rows g and g + 8.
#pragma once

#include <type_traits>

#include "tile.cuh"

namespace dissim {

template <class E>
struct Pair;
template <>
struct Pair<__half> {
  using type = __half2;
};
template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
};

// The greater of two pairs of halves each; either where one is NaN.
template <class E>
__device__ __forceinline__ unsigned greater(unsigned a, unsigned b) {
  using P = typename Pair<E>::type;
  P x, y;
  memcpy(&x, &a, sizeof(a));
  memcpy(&y, &b, sizeof(b));
  x = __hmax2(x, y);
  memcpy(&a, &x, sizeof(a));
  return a;
}
template <class E>
__device__ __forceinline__ uint4 greater(const uint4& a, const uint4& b) {
  return {greater<E>(a.x, b.x), greater<E>(a.y, b.y), greater<E>(a.z, b.z), greater<E>(a.w, b.w)};
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
// As measured on Hopper (Khattak and Mikaitis, arXiv 2512.07004; before it Fasi et al., PeerJ CS 7:e330): products are
// exact; they and c are shifted to the exponent of the greatest and cut off two bits below a float's last; so is their
// sum, at the last. Vendors promise nothing.
inline float sum_cut_off(const double (&terms)[17]) {
  double greatest = 0, sum = 0;
  for (double term : terms)
    if (std::isfinite(term)) greatest = std::fmax(greatest, std::abs(term));
  const double last = greatest > 0 ? std::ldexp(1, std::ilogb(greatest) - 25) : 1;
  for (double term : terms) sum += std::trunc(term / last) * last;
  const float near = float(sum);
  return std::isfinite(near) && std::abs(double(near)) > std::abs(sum) ? std::nextafter(near, 0.f) : near;
}

template <class E>
void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  static unsigned of_lanes[kWarps][kWarp][6];
  unsigned(*const warp)[6] = of_lanes[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  memcpy(warp[lane], a, sizeof(a));
  warp[lane][4] = b0;
  warp[lane][5] = b1;
  __syncwarp();
  const auto half = [](unsigned pair, int i) {
    E x;
    const uint16_t bits = uint16_t(pair >> 16 * i);
    memcpy(&x, &bits, sizeof(x));
    return double(to_acc(x));
  };
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    double terms[17];
    for (int k = 0; k < 16; ++k)
      terms[k] =
          half(warp[4 * g + k % 8 / 2][row + k / 8 * 2], k % 2) * half(warp[4 * column + k % 8 / 2][4 + k / 8], k % 2);
    terms[16] = c[i];
    c[i] = sum_cut_off(terms);
  }
  __syncwarp();
}
#endif

// c += a b over 32 columns of a and rows of b, of which lane 4 g + t brings 8 t .. 8 t + 7: those of a's rows g (low)
// and g + 8 (high), those of b's column g. They are columns of two products, in an order of their own that a and b
// split.
template <class E>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& low, const uint4& high, const uint4& b) {
  const unsigned first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
  mma_m16n8k16<E>(c, first, b.x, b.y);
  mma_m16n8k16<E>(c, second, b.z, b.w);
}

}  // namespace dissim
