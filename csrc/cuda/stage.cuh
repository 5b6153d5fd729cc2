// A tile's scores on their way from registers to warps that own whole rows, through the buffers that fed the tile.
#pragma once

#include "tile.cuh"

namespace dissim {

// A part of the tile's rows at a time, where the buffers do not hold all.
template <class A>
constexpr int kParts = Tile<A>::kRows * Tile<A>::kRows > 2 * Tile<A>::kStage ? 2 : 1;
template <class A>
constexpr int kPartRows = Tile<A>::kRows / kParts<A>;

// Scores [kPartRows][kRows] of a part, the bias added.
template <class A>
__device__ __forceinline__ void stage_part(const A (&sums)[Tile<A>::kSide][Tile<A>::kSide], int part, A bias,
                                           A* scores) {
  using T = Tile<A>;
  constexpr int side = T::kSide / kParts<A>;
  A* const to = scores + threadIdx.x / kGrid * T::kRows + threadIdx.x % kGrid;
#pragma unroll
  for (int i = 0; i < side; ++i)
#pragma unroll
    for (int j = 0; j < T::kSide; ++j) to[i * kGrid * T::kRows + j * kGrid] = sums[part * side + i][j] + bias;
}

}  // namespace dissim
