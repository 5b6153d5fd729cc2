// Writes a tile's scores from registers to shared memory, where a warp can then process whole rows.
#pragma once

#include "tile.cuh"

namespace dissim {

// The scores take the place of the two stages that fed the tile. Float32 scores do not fit, so they are written and
// processed in two passes of half of the rows each.
template <class A>
constexpr int kPasses = Tile<A>::kRows * Tile<A>::kRows > 2 * Tile<A>::kStageSize ? 2 : 1;
template <class A>
constexpr int kPassRows = Tile<A>::kRows / kPasses<A>;

// Writes the scores [kPassRows][kRows] of one pass, with the bias.
template <class A>
__device__ __forceinline__ void store_scores(const A (&sums)[Tile<A>::kPerThread][Tile<A>::kPerThread], int pass,
                                             A bias, A* scores) {
  using T = Tile<A>;
  constexpr int rows_per_thread = T::kPerThread / kPasses<A>;
  A* const to = scores + threadIdx.x / kBlockSide * T::kRows + threadIdx.x % kBlockSide;
#pragma unroll
  for (int i = 0; i < rows_per_thread; ++i)
#pragma unroll
    for (int j = 0; j < T::kPerThread; ++j)
      to[i * kBlockSide * T::kRows + j * kBlockSide] = sums[pass * rows_per_thread + i][j] + bias;
}

}  // namespace dissim
