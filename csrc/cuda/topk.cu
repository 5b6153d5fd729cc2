// topk: the k best references of each query. A block scores a tile of queries against one split of the references and
// keeps a candidate list per query; then the lists of each query are merged (splits.cuh). No score matrix is stored.
//
//   for each reference tile of the split:
//       sums = score_tile(...)                                 a block, in registers
//       for each pass over the tile's rows:
//           store_scores(sums, pass)                           to shared memory
//           select_from_tile(...)                              a warp per query
#include "candidates.cuh"
#include "launchers.h"
#include "splits.cuh"
#include "tile_scores.cuh"

namespace dissim {
namespace {

constexpr int64_t kMaxListBytes = 1 << 30;  // of all candidate lists, unless one split needs more

// Appends the scores [rows][T::kRows] of the tile's queries from `first_query` on to their lists, a warp per query.
template <class A>
__device__ __forceinline__ void select_from_tile(const TopK& p, const SplitLists<A>& splits, const A* scores, int rows,
                                                 int64_t first_query, int64_t m0, ListState<A>* states) {
  using T = Tile<A>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first_query + row < p.query.rows; row += kWarps) {
    const int64_t n = first_query + row;
    ListState<A> state = states[row];
#pragma unroll 1
    for (int column = lane; column < T::kRows; column += kWarp) {
      const int64_t m = m0 + column;
      const Candidate<A> mine = {score_to_key<A>(scores[row * T::kRows + column], p.largest), m};
      const bool valid = m < p.reference.rows && mine.is_better_than(state.threshold) && is_candidate(p.filter, n, m);
      splits.append(blockIdx.y, n, state, mine, valid);
    }
    __syncwarp();
    if (lane == 0) states[row] = state;
  }
}

template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, kTileBlocksPerSM) topk_kernel(TopK p, SplitLists<Acc<E>> splits) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  __shared__ ListState<A> states[T::kRows];
  const int64_t first_query = int64_t(blockIdx.x) * T::kRows;
  for (int row = threadIdx.x; row < T::kRows; row += kThreads) states[row] = kEmptyList<A>;
  __syncthreads();
#pragma unroll 1
  for (int tile = 0; tile < splits.tiles; ++tile) {
    const int64_t m0 = (blockIdx.y * splits.tiles + tile) * T::kRows;  // 32-bit arithmetic saves registers
    if (m0 >= p.reference.rows) break;
    A sums[T::kPerThread][T::kPerThread];
    score_tile<E, use_cp_async>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), first_query, m0,
                                buffers, sums);
    const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
    for (int pass = 0; pass < kPasses<A>; ++pass) {
      const int first_row = pass * kPassRows<A>;
      store_scores<A>(sums, pass, bias, buffers);
      __syncthreads();
      select_from_tile<A>(p, splits, buffers, kPassRows<A>, first_query + first_row, m0, states + first_row);
      __syncthreads();
    }
  }
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < T::kRows && first_query + row < p.query.rows; row += kWarps)
    splits.clear_unused_slots(blockIdx.y, first_query + row, states[row].count);
}

template <class A>
SplitLists<A> plan_topk(const TopK& p) {
  return plan_splits<A>(p, Tile<A>::kRows, kMaxListBytes);
}

template <class E>
void launch_topk_as(const TopK& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  if (p.query.rows * p.k == 0) return;
  const SplitLists<A> splits = plan_topk<A>(p).bind(workspace);
  const Grid grid = {ceil_div(p.query.rows, Tile<A>::kRows), splits.count};
  if (is_16B_aligned<E>(p)) {
    launch("topk_kernel", topk_kernel<E, sizeof(E) >= 4>, grid, Tile<A>::kSharedBytes, stream, p, splits);
  } else {
    launch("topk_kernel", topk_kernel<E, false>, grid, Tile<A>::kSharedBytes, stream, p, splits);
  }
  launch_merge(p, splits, stream);
}

}  // namespace

int64_t topk_workspace(const TopK& p) {
  return p.dtype == Dtype::float64 ? plan_topk<double>(p).bytes() : plan_topk<float>(p).bytes();
}

void launch_topk(const TopK& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return launch_topk_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_topk_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_topk_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_topk_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
