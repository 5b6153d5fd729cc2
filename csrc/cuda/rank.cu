// rank: for every listed pair, the number of references that come before it (E16).
//
//   rank_clear_kernel  sets counts and nan_rows to 0
//   rank_kernel        scores a tile of pairs, then a warp per query row compares its scores with each listed pair
//
// A tile adds to the counts with atomics: sums of integers do not depend on the order.
#include "batch.cuh"
#include "launchers.h"
#include "tile_scores.cuh"

namespace dissim {
namespace {

// Counts the scores of a tile's queries from `first_query` on, a warp per query. scores: [rows][T::kRows].
template <class A>
__device__ __forceinline__ void rank_epilogue(const Rank& p, const A* scores, int rows, int64_t first_query,
                                              int64_t first_reference) {
  using T = Tile<A>;
  constexpr int kLaneScores = T::kRows / kWarp;
  const int lane = threadIdx.x % kWarp;
  const A* const listed = static_cast<const A*>(p.listed_scores);
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first_query + row < p.query.rows; row += kWarps) {
    const int64_t n = first_query + row;
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) {
      const A score = scores[row * T::kRows + i * kWarp + lane];
      is_nan |= score != score && first_reference + i * kWarp + lane < p.reference.rows;
    }
    if (__any_sync(kAllLanes, is_nan) && lane == 0) p.nan_rows[n] = 1;
    const int64_t begin = max(p.offsets[n], int64_t(0)), end = min(p.offsets[n + 1], p.pairs);
#pragma unroll 1
    for (int64_t pair = begin; pair < end; ++pair) {
      const A score_of_pair = listed[pair];
      const int64_t index = p.indices[pair];
      int before = 0;
#pragma unroll
      for (int i = 0; i < kLaneScores; ++i) {
        const int64_t m = first_reference + i * kWarp + lane;
        const A score = scores[row * T::kRows + i * kWarp + lane];
        const bool is_before = score > score_of_pair || (score == score_of_pair && m < index);
        before += __popc(__ballot_sync(kAllLanes, is_before && m != index && m < p.reference.rows));
      }
      if (before && lane == 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(p.counts + pair), (unsigned long long)before);
    }
  }
}

template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, kTileBlocksPerSM) rank_kernel(Rank p, int64_t row_tiles) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  const int64_t n0 = blockIdx.x % row_tiles * T::kRows, m0 = blockIdx.x / row_tiles * T::kRows;
  A sums[T::kPerThread][T::kPerThread];
  score_tile<E, use_cp_async>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), n0, m0, buffers, sums);
  const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
  for (int pass = 0; pass < kPasses<A>; ++pass) {
    store_scores<A>(sums, pass, bias, buffers);
    __syncthreads();
    rank_epilogue<A>(p, buffers, kPassRows<A>, n0 + pass * kPassRows<A>, m0);
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads) rank_clear_kernel(Rank p) {
  const int64_t i = linear_block_id() * kThreads + threadIdx.x;
  if (i < p.pairs) p.counts[i] = 0;
  if (i < p.query.rows) p.nan_rows[i] = 0;
}

template <class E>
void launch_rank_as(const Rank& p, Stream stream) {
  using A = Acc<E>;
  const int64_t row_tiles = ceil_div(p.query.rows, Tile<A>::kRows);
  const int64_t column_tiles = ceil_div(p.reference.rows, Tile<A>::kRows);
  launch("rank_clear_kernel", rank_clear_kernel, grid_for(ceil_div(max(p.pairs, p.query.rows), kThreads)), 0, stream,
         p);
  const auto kernel = is_16B_aligned<E>(p) ? rank_kernel<E, sizeof(E) >= 4> : rank_kernel<E, false>;
  launch("rank_kernel", kernel, {row_tiles * column_tiles, 1}, Tile<A>::kSharedBytes, stream, p, row_tiles);
}

}  // namespace

int64_t rank_workspace(const Rank&) { return 0; }

void launch_rank(const Rank& p, void*, Stream stream) {
  if (p.query.rows == 0) return;
  switch (p.dtype) {
    case Dtype::float16: return launch_rank_as<__half>(p, stream);
    case Dtype::bfloat16: return launch_rank_as<__nv_bfloat16>(p, stream);
    case Dtype::float32: return launch_rank_as<float>(p, stream);
    case Dtype::float64: return launch_rank_as<double>(p, stream);
  }
}

}  // namespace dissim
