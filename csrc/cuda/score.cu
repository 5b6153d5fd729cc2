// score: E1 for every pair, by one of three kernels.
//
//   few rows on one side     score_pairs_kernel   a warp per pair
//   half types               score_max_kernel     the max form (E7) on tensor cores, then score_kernel for the tiles
//                                                 with a pair that lost too much precision
//   everything else          score_kernel         a tile of pairs per block, in registers
#include "launchers.h"
#include "score_max.cuh"

namespace dissim {
namespace {

constexpr int64_t kSmallBatchRows = 4;  // with this many rows or fewer on one side, tiles would be almost empty
constexpr int64_t kMinMaxFormDim = kPlaneDims;  // below, preparing the max form costs more than it saves

// tile_mask: null, or for each tile whether to score it.
template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, kTileBlocksPerSM) score_kernel(Score p, const int* tile_mask) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, shared);
  const int64_t rows = ceil_div(p.query.rows, T::kRows), columns = ceil_div(p.reference.rows, T::kRows);  // of tiles
  const int64_t tile = linear_block_id();
  if (tile >= p.batch * p.heads * rows * columns || (tile_mask && !tile_mask[tile])) return;
  const int64_t m0 = tile % columns * T::kRows, n0 = tile / columns % rows * T::kRows;
  const int64_t head = tile / columns / rows % p.heads, batch = tile / columns / rows / p.heads;
  A sums[T::kPerThread][T::kPerThread];
  score_tile<E, use_cp_async>(batch_slice<E>(p.query, batch), batch_slice<E>(p.reference, batch),
                              static_cast<const A*>(p.weight) + head * p.dim, int(p.dim), n0, m0, shared, sums);
  const A bias = p.bias ? static_cast<const A*>(p.bias)[head] : A(0);
  E* const scores = static_cast<E*>(p.scores) + (batch * p.heads + head) * p.query.rows * p.reference.rows;
  const int x = threadIdx.x % kBlockSide, y = threadIdx.x / kBlockSide;
#pragma unroll
  for (int i = 0; i < T::kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < T::kPerThread; ++j) {
      const int64_t n = n0 + y + i * kBlockSide, m = m0 + x + j * kBlockSide;
      if (n < p.query.rows && m < p.reference.rows) scores[n * p.reference.rows + m] = from_acc<E>(sums[i][j] + bias);
    }
}

// A warp per pair. Lane l adds up the dimensions l, l + 32, l + 64, ...
template <class E>
__global__ void __launch_bounds__(kThreads) score_pairs_kernel(Score p) {
  using A = Acc<E>;
  const int64_t pair = linear_block_id() * kWarps + threadIdx.x / kWarp;
  if (pair >= p.batch * p.heads * p.query.rows * p.reference.rows) return;
  const int64_t m = pair % p.reference.rows, n = pair / p.reference.rows % p.query.rows;
  const int64_t head = pair / p.reference.rows / p.query.rows % p.heads;
  const int64_t batch = pair / p.reference.rows / p.query.rows / p.heads;
  const Rows query = batch_slice<E>(p.query, batch), reference = batch_slice<E>(p.reference, batch);
  const A* const weight = static_cast<const A*>(p.weight) + head * p.dim;
  A sum = 0;
#pragma unroll 4
  for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp)
    sum = add_term(weight[d], load_element<E>(query, n, d), load_element<E>(reference, m, d), sum);
  sum = warp_sum(sum) + (p.bias ? static_cast<const A*>(p.bias)[head] : A(0));
  if (threadIdx.x % kWarp == 0) static_cast<E*>(p.scores)[pair] = from_acc<E>(sum);
}

template <class A>
int64_t num_tiles(const Score& p) {
  return p.batch * p.heads * ceil_div(p.query.rows, Tile<A>::kRows) * ceil_div(p.reference.rows, Tile<A>::kRows);
}

// The tile kernels count dimensions in int, up to two stages beyond the last one; a larger D is scored pair by pair.
bool uses_pairs_kernel(const Score& p) {
  return min(p.query.rows, p.reference.rows) <= kSmallBatchRows || p.dim > INT32_MAX - 2 * MaxTile::kStageDims;
}
bool uses_max_form(const Score& p) {
  return (p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16) && !uses_pairs_kernel(p) && p.dim >= kMinMaxFormDim;
}

// The layout of the workspace; `bytes` is set to its size.
MaxFormPlan plan_max_form(const Score& p, void* workspace, int64_t& bytes) {
  bytes = 0;
  const auto take = [&](int64_t size) {
    void* const begin = static_cast<char*>(workspace) + bytes;
    bytes += ceil_div(size, 16) * 16;
    return begin;
  };
  const auto take_row_sums = [&](const Rows& rows) {
    return static_cast<RowSums*>(take(p.batch * rows.rows * p.heads * int64_t(sizeof(RowSums))));
  };
  MaxFormPlan plan = {};
  plan.head_groups = ceil_div(p.heads, kHeadsPerProduct);
  plan.padded_dim = ceil_div(p.dim, MaxTile::kStageDims) * MaxTile::kStageDims;
  plan.tiles = num_tiles<float>(p);
  plan.weight_columns = take(plan.head_groups * kWeightColumns * plan.padded_dim * 2);
  plan.query_sums = take_row_sums(p.query);
  plan.reference_sums = take_row_sums(p.reference);
  plan.unscale = static_cast<float*>(take(p.heads * 4));
  plan.rescore_tile = static_cast<int*>(take(plan.tiles * 4));
  return plan;
}

// Scores all pairs by the max form. Returns the mask of the tiles that have to be scored again by E1.
template <class E>
const int* launch_max_form(const Score& p, void* workspace, Stream stream) {
  int64_t bytes;
  const MaxFormPlan plan = plan_max_form(p, workspace, bytes);
  launch("weight_parts_kernel", weight_parts_kernel<E>, {plan.head_groups, 1}, 0, stream, p, plan);
  const int64_t warps =
      ceil_div(p.batch * p.query.rows, kRowsPerWarp) + ceil_div(p.batch * p.reference.rows, kRowsPerWarp);
  launch("row_sums_kernel", row_sums_kernel<E>, grid_for(ceil_div(warps, kWarps)), 0, stream, p, plan);
  const Grid grid = grid_for(p.batch * plan.head_groups * ceil_div(p.query.rows, MaxTile::kQueries) *
                             ceil_div(p.reference.rows, MaxTile::kReferences));
  if (rows_are_16B_aligned(p.query, 2) && rows_are_16B_aligned(p.reference, 2)) {
    launch("score_max_kernel", score_max_kernel<E, true>, grid, MaxTile::kSharedBytes, stream, p, plan);
  } else {
    launch("score_max_kernel", score_max_kernel<E, false>, grid, MaxTile::kSharedBytes, stream, p, plan);
  }
  return plan.rescore_tile;
}

template <class E>
void launch_score_as(const Score& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  const int64_t pairs = p.batch * p.heads * p.query.rows * p.reference.rows;
  if (pairs == 0) return;
  if (uses_pairs_kernel(p))
    return launch("score_pairs_kernel", score_pairs_kernel<E>, grid_for(ceil_div(pairs, kWarps)), 0, stream, p);
  const int* tile_mask = nullptr;
  if constexpr (sizeof(E) == 2)
    if (uses_max_form(p)) tile_mask = launch_max_form<E>(p, workspace, stream);
  const Grid grid = grid_for(num_tiles<A>(p));
  if (is_16B_aligned<E>(p)) {
    launch("score_kernel", score_kernel<E, sizeof(E) >= 4>, grid, Tile<A>::kSharedBytes, stream, p, tile_mask);
  } else {
    launch("score_kernel", score_kernel<E, false>, grid, Tile<A>::kSharedBytes, stream, p, tile_mask);
  }
}

}  // namespace

int64_t score_workspace(const Score& p) {
  int64_t bytes = 0;
  if (uses_max_form(p)) plan_max_form(p, nullptr, bytes);
  return bytes;
}

void launch_score(const Score& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return launch_score_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_score_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_score_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_score_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
