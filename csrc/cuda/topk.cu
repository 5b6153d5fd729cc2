// topk: the k best references of each query. Blocks score tiles of their queries against a share of the references and
// keep candidates for the k best of that split; then each query's splits are merged. Scores never leave registers.
#include "launchers.h"
#include "splits.cuh"
#include "stage.cuh"

namespace dissim {
namespace {

constexpr int64_t kListBytes = 1 << 30;  // of all queries' lists, if a list for each needs no more

// Offers the scores [rows][columns] of a tile's rows from `first` on to their queries' lists, a warp for each row.
template <class A>
__device__ __forceinline__ void select(const TopK& p, const Splits<A>& splits, const A* scores, int rows, int64_t first,
                                       int64_t m0, Selection<A>* selections) {
  using T = Tile<A>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first + row < p.query.rows; row += kWarps) {
    const int64_t n = first + row, excluded = p.exclude_index ? p.exclude_index[n] : -1;
    Selection<A> selection = selections[row];
#pragma unroll 1
    for (int column = lane; column < T::kRows; column += kWarp) {
      const int64_t m = m0 + column;
      const Candidate<A> mine = {key_of<A>(scores[row * T::kRows + column], p.largest), m};
      bool offered = m < p.reference.rows && mine.better_than(selection.last) && m != excluded;
      if (offered && p.query_labels) offered = p.reference_labels[m] != p.query_labels[n];
      splits.offer(blockIdx.y, n, selection, mine, offered);
    }
    __syncwarp();
    if (lane == 0) selections[row] = selection;
  }
}

template <class E, bool copied>
__global__ void __launch_bounds__(kThreads, kTileBlocks) topk_kernel(TopK p, Splits<Acc<E>> splits) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  __shared__ Selection<A> selections[T::kRows];
  const int64_t first_query = int64_t(blockIdx.x) * T::kRows;
  for (int row = threadIdx.x; row < T::kRows; row += kThreads) selections[row] = kNothingYet<A>;
  __syncthreads();
#pragma unroll 1
  for (int tile = 0; tile < splits.tiles; ++tile) {  // 32 bits where they suffice: no register is to spare
    const int64_t m0 = (blockIdx.y * splits.tiles + tile) * T::kRows;
    if (m0 >= p.reference.rows) break;
    A sums[T::kSide][T::kSide];
    score_tile<E, copied>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), first_query, m0, buffers,
                          sums);
    const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
    for (int part = 0; part < kParts<A>; ++part) {
      stage_part<A>(sums, part, bias, buffers);
      __syncthreads();
      select<A>(p, splits, buffers, kPartRows<A>, first_query + part * kPartRows<A>, m0,
                selections + part * kPartRows<A>);
      __syncthreads();
    }
  }
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < T::kRows && first_query + row < p.query.rows; row += kWarps)
    splits.close(blockIdx.y, first_query + row, selections[row].count);
}

template <class A>
Splits<A> splits_of_topk(const TopK& p) {
  return splits_of<A>(p, Tile<A>::kRows, kListBytes);
}

template <class E>
void launch_topk_as(const TopK& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  if (p.query.rows * p.k == 0) return;
  const Splits<A> splits = splits_of_topk<A>(p).at(workspace);
  const Grid grid = {ceil_div(p.query.rows, Tile<A>::kRows), splits.count};
  if (can_copy<E>(p)) {
    launch("topk_kernel", topk_kernel<E, sizeof(E) >= 4>, grid, Tile<A>::kSharedBytes, stream, p, splits);
  } else {
    launch("topk_kernel", topk_kernel<E, false>, grid, Tile<A>::kSharedBytes, stream, p, splits);
  }
  launch_merge(p, splits, stream);
}

}  // namespace

int64_t topk_workspace(const TopK& p) {
  return p.dtype == Dtype::float64 ? splits_of_topk<double>(p).bytes() : splits_of_topk<float>(p).bytes();
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
