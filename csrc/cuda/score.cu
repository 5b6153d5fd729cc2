// score: E1 for every pair. Tiles of pairs in registers; for few rows a warp for each pair; for half types E7 on matrix
// units first (score_max.cuh), and E1 where that is not certain.
#include "launchers.h"
#include "score_max.cuh"

namespace dissim {
namespace {

constexpr int64_t kFewRows = 4;  // up to so many on either side, tiles would be all but empty
constexpr int64_t kDeep = kPlane;  // dimensions from which preparing E7 pays

// wanted: null, or for each tile whether to score it.
template <class E, bool copied>
__global__ void __launch_bounds__(kThreads, kTileBlocks) score_kernel(Score p, const int* wanted) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, shared);
  const int64_t rows = ceil_div(p.query.rows, T::kRows), columns = ceil_div(p.reference.rows, T::kRows);
  const int64_t task = task_of_block();
  if (task >= p.batch * p.heads * rows * columns || (wanted && !wanted[task])) return;
  const int64_t m0 = task % columns * T::kRows, n0 = task / columns % rows * T::kRows;
  const int64_t head = task / columns / rows % p.heads, batch = task / columns / rows / p.heads;
  A sums[T::kSide][T::kSide];
  score_tile<E, copied>(entry_of<E>(p.query, batch), entry_of<E>(p.reference, batch),
                        static_cast<const A*>(p.weight) + head * p.dim, int(p.dim), n0, m0, shared, sums);
  const A bias = p.bias ? static_cast<const A*>(p.bias)[head] : A(0);
  E* const scores = static_cast<E*>(p.scores) + (batch * p.heads + head) * p.query.rows * p.reference.rows;
  const int x = threadIdx.x % kGrid, y = threadIdx.x / kGrid;
#pragma unroll
  for (int i = 0; i < T::kSide; ++i)
#pragma unroll
    for (int j = 0; j < T::kSide; ++j) {
      const int64_t n = n0 + y + i * kGrid, m = m0 + x + j * kGrid;
      if (n < p.query.rows && m < p.reference.rows) scores[n * p.reference.rows + m] = narrow<E>(sums[i][j] + bias);
    }
}

// A warp for each pair, its lanes for dimensions.
template <class E>
__global__ void __launch_bounds__(kThreads) score_pairs_kernel(Score p) {
  using A = Acc<E>;
  const int64_t pair = task_of_block() * kWarps + threadIdx.x / kWarp;
  if (pair >= p.batch * p.heads * p.query.rows * p.reference.rows) return;
  const int64_t m = pair % p.reference.rows, n = pair / p.reference.rows % p.query.rows;
  const int64_t head = pair / p.reference.rows / p.query.rows % p.heads;
  const int64_t batch = pair / p.reference.rows / p.query.rows / p.heads;
  const Rows query = entry_of<E>(p.query, batch), reference = entry_of<E>(p.reference, batch);
  const A* const weight = static_cast<const A*>(p.weight) + head * p.dim;
  A sum = 0;
#pragma unroll 4
  for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp)
    sum = add_term(weight[d], element_of<E>(query, n, d), element_of<E>(reference, m, d), sum);
  sum = sum_of_warp(sum) + (p.bias ? static_cast<const A*>(p.bias)[head] : A(0));
  if (threadIdx.x % kWarp == 0) static_cast<E*>(p.scores)[pair] = narrow<E>(sum);
}

template <class A>
int64_t tiles_of(const Score& p) {
  return p.batch * p.heads * ceil_div(p.query.rows, Tile<A>::kRows) * ceil_div(p.reference.rows, Tile<A>::kRows);
}

bool few_rows(const Score& p) {
  return min(p.query.rows, p.reference.rows) <= kFewRows || p.dim > INT32_MAX - 2 * kDimStep;
}
bool uses_max(const Score& p) {
  return (p.dtype == Dtype::float16 || p.dtype == Dtype::bfloat16) && !few_rows(p) && p.dim >= kDeep;
}

// Lays the plan out in the workspace; `bytes` is what it takes.
MaxPlan max_plan(const Score& p, void* workspace, int64_t& bytes) {
  bytes = 0;
  const auto take = [&](int64_t size) {
    void* const place = static_cast<char*>(workspace) + bytes;
    bytes += ceil_div(size, 16) * 16;
    return place;
  };
  const int64_t pairs = ceil_div(p.heads, kHeadsAtOnce), depth = ceil_div(p.dim, kDimStep) * kDimStep,
                tiles = tiles_of<float>(p);
  const auto sums = [&](const Rows& rows) {
    return static_cast<RowSums*>(take(p.batch * rows.rows * p.heads * int64_t(sizeof(RowSums))));
  };
  void* const columns = take(pairs * kColumns * depth * 2);
  RowSums *const of_query = sums(p.query), *const of_reference = sums(p.reference);
  float* const scale = static_cast<float*>(take(p.heads * 4));
  return {pairs, depth, scale, columns, of_query, of_reference, static_cast<int*>(take(tiles * 4)), tiles};
}

template <class E>
const int* launch_max(const Score& p, void* workspace, Stream stream) {
  int64_t bytes;
  const MaxPlan plan = max_plan(p, workspace, bytes);
  launch("split_weights_kernel", split_weights_kernel<E>, {plan.pairs_of_heads, 1}, 0, stream, p, plan);
  const int64_t rows =
      ceil_div(p.batch * p.query.rows, kRowsOfWarp) + ceil_div(p.batch * p.reference.rows, kRowsOfWarp);
  launch("row_sums_kernel", row_sums_kernel<E>, grid_of(ceil_div(rows, kWarps)), 0, stream, p, plan);
  const Grid grid = grid_of(p.batch * plan.pairs_of_heads * ceil_div(p.query.rows, MaxTile::kQueries) *
                            ceil_div(p.reference.rows, MaxTile::kReferences));
  if (copies(p.query, 2) && copies(p.reference, 2)) {
    launch("score_max_kernel", score_max_kernel<E, true>, grid, MaxTile::kSharedBytes, stream, p, plan);
  } else {
    launch("score_max_kernel", score_max_kernel<E, false>, grid, MaxTile::kSharedBytes, stream, p, plan);
  }
  return plan.uncertain;
}

template <class E>
void launch_score_as(const Score& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  if (p.batch * p.heads * p.query.rows * p.reference.rows == 0) return;
  if (few_rows(p)) {
    const int64_t pairs = p.batch * p.heads * p.query.rows * p.reference.rows;
    return launch("score_pairs_kernel", score_pairs_kernel<E>, grid_of(ceil_div(pairs, kWarps)), 0, stream, p);
  }
  const int* wanted = nullptr;
  if constexpr (sizeof(E) == 2)
    if (uses_max(p)) wanted = launch_max<E>(p, workspace, stream);
  const Grid grid = grid_of(tiles_of<A>(p));
  if (can_copy<E>(p)) {
    launch("score_kernel", score_kernel<E, sizeof(E) >= 4>, grid, Tile<A>::kSharedBytes, stream, p, wanted);
  } else {
    launch("score_kernel", score_kernel<E, false>, grid, Tile<A>::kSharedBytes, stream, p, wanted);
  }
}

}  // namespace

int64_t score_workspace(const Score& p) {
  int64_t bytes = 0;
  if (uses_max(p)) max_plan(p, nullptr, bytes);
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
