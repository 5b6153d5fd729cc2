// hinge: for every query, the sums of max(0, margin - y s) over its positive and over its negative pairs, and one bit
// for each pair that is inside the margin (E12).
//
//   hinge_kernel      scores a tile of pairs, then a warp per query row writes its bits and the tile's two sums
//   hinge_sum_kernel  adds up the sums of a query over the tiles, in order; a thread per query
//
// With num_hard_negatives, top-k runs first. A negative counts if it is not worse than the last one that top-k returns.
// Both kernels score with score_tile, so their scores are bit-identical and this comparison is exact.
#include "launchers.h"
#include "select.cuh"
#include "tile_scores.cuh"

namespace dissim {
namespace {

template <class A>
struct HingeWorkspace {
  int64_t row_tiles, column_tiles;
  int64_t num_hard;  // hard negatives per query; -1: all negatives count
  A* tile_sums;  // [column_tiles][positive, negative][queries]
  int64_t* hard_indices;  // [queries][num_hard]: the result of top-k
  A* hard_scores;  // the same
  void* topk_workspace;
};

// The top-k search for each query's hard negatives.
template <class A>
TopK hard_negative_search(const Hinge& p, const HingeWorkspace<A>& w) {
  TopK search = {p.dtype, p.dim, w.num_hard, true, p.query, p.reference, p.weight, p.bias};
  search.filter = {p.query_labels, p.reference_labels, p.exclude_index, false};
  search.scores = w.hard_scores;
  search.indices = w.hard_indices;
  return search;
}

template <class A>
HingeWorkspace<A> lay_out_workspace(const Hinge& p, void* workspace) {
  HingeWorkspace<A> w{};
  w.row_tiles = ceil_div(p.query.rows, Tile<A>::kRows);
  w.column_tiles = ceil_div(p.reference.rows, Tile<A>::kRows);
  w.num_hard = p.num_hard_negatives >= p.reference.rows ? -1 : p.num_hard_negatives;
  const int64_t hard_count = p.query.rows * max(w.num_hard, 0);
  w.hard_indices = static_cast<int64_t*>(workspace);
  w.topk_workspace = w.hard_indices + hard_count;
  const int64_t topk_words =
      w.num_hard > 0 ? topk_workspace(hard_negative_search(p, w)) / int64_t(sizeof(int64_t)) + 1 : 0;
  w.hard_scores = reinterpret_cast<A*>(w.hard_indices + hard_count + topk_words);
  w.tile_sums = w.hard_scores + hard_count;
  return w;
}

template <class A>
int64_t workspace_bytes(const Hinge& p) {
  const HingeWorkspace<A> w = lay_out_workspace<A>(p, nullptr);
  return reinterpret_cast<intptr_t>(w.tile_sums + w.column_tiles * 2 * p.query.rows);
}

// Writes the bits and the sums of a tile's queries from `first_query` on, a warp per query. scores: [rows][T::kRows].
template <class A>
__device__ __forceinline__ void hinge_epilogue(const Hinge& p, const HingeWorkspace<A>& w, const A* scores, int rows,
                                               int64_t first_query, int64_t column_tile) {
  using T = Tile<A>;
  const int lane = threadIdx.x % kWarp;
  const int64_t row_bytes = ceil_div(p.reference.rows, 8);
  const A margin = A(p.margin);
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first_query + row < p.query.rows; row += kWarps) {
    const int64_t n = first_query + row, label = p.query_labels[n];
    const int64_t excluded = p.exclude_index ? p.exclude_index[n] : -1;
    Candidate<A> last_hard = {0, kNoIndex};  // everything is better if there are fewer than num_hard negatives
    if (w.num_hard > 0 && w.hard_indices[(n + 1) * w.num_hard - 1] >= 0)
      last_hard = {score_to_key<A>(w.hard_scores[(n + 1) * w.num_hard - 1], true),
                   w.hard_indices[(n + 1) * w.num_hard - 1]};
    A positive = 0, negative = 0;
#pragma unroll 1
    for (int column = lane; column < T::kRows; column += kWarp) {
      const int64_t m = column_tile * T::kRows + column;
      const bool exists = m < p.reference.rows && m != excluded;
      const bool is_positive = exists && p.reference_labels[m] == label;
      const A score = scores[row * T::kRows + column], violation = margin - (is_positive ? score : -score);
      const bool is_hard =
          w.num_hard < 0 || (w.num_hard > 0 && !last_hard.is_better_than({score_to_key<A>(score, true), m}));
      const bool counts = exists && (is_positive || is_hard);
      const A loss = counts && !(violation <= 0) ? violation : A(0);  // a NaN stays NaN
      positive += is_positive ? loss : A(0);
      negative += is_positive ? A(0) : loss;
      const unsigned active = __ballot_sync(kAllLanes, counts && violation > 0);
      const int64_t byte = (m - lane) / 8 + lane;  // the first four lanes store the warp's 32 bits
      if (lane < kWarp / 8 && byte < row_bytes) p.active[n * row_bytes + byte] = uint8_t(active >> (8 * lane));
    }
#pragma unroll
    for (int offset = kWarp / 2; offset; offset /= 2) {
      positive += __shfl_xor_sync(kAllLanes, positive, offset);
      negative += __shfl_xor_sync(kAllLanes, negative, offset);
    }
    if (lane < 2) w.tile_sums[(column_tile * 2 + lane) * p.query.rows + n] = lane ? negative : positive;
  }
}

template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, kTileBlocksPerSM) hinge_kernel(Hinge p, HingeWorkspace<Acc<E>> w) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  const int64_t n0 = blockIdx.x % w.row_tiles * T::kRows;
  A sums[T::kPerThread][T::kPerThread];
  score_tile<E, use_cp_async>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), n0,
                              blockIdx.x / w.row_tiles * T::kRows, buffers, sums);
  const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
  for (int pass = 0; pass < kPasses<A>; ++pass) {
    store_scores<A>(sums, pass, bias, buffers);
    __syncthreads();
    hinge_epilogue<A>(p, w, buffers, kPassRows<A>, n0 + pass * kPassRows<A>, blockIdx.x / w.row_tiles);
    __syncthreads();
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) hinge_sum_kernel(Hinge p, HingeWorkspace<A> w) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.query.rows) return;
  A sums[2] = {0, 0};  // positive, negative
  for (int64_t tile = 0; tile < w.column_tiles; ++tile)
    for (int i = 0; i < 2; ++i) sums[i] += w.tile_sums[(tile * 2 + i) * p.query.rows + n];
  static_cast<A*>(p.positive)[n] = sums[0];
  static_cast<A*>(p.negative)[n] = sums[1];
}

template <class E>
void launch_hinge_as(const Hinge& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  const HingeWorkspace<A> w = lay_out_workspace<A>(p, workspace);
  if (w.num_hard > 0) launch_topk(hard_negative_search(p, w), w.topk_workspace, stream);
  const auto kernel = is_16B_aligned<E>(p) ? hinge_kernel<E, sizeof(E) >= 4> : hinge_kernel<E, false>;
  launch("hinge_kernel", kernel, {w.row_tiles * w.column_tiles, 1}, Tile<A>::kSharedBytes, stream, p, w);
  launch("hinge_sum_kernel", hinge_sum_kernel<A>, {ceil_div(p.query.rows, kThreads), 1}, 0, stream, p, w);
}

}  // namespace

int64_t hinge_workspace(const Hinge& p) {
  return p.dtype == Dtype::float64 ? workspace_bytes<double>(p) : workspace_bytes<float>(p);
}

void launch_hinge(const Hinge& p, void* workspace, Stream stream) {
  if (p.query.rows == 0) return;
  switch (p.dtype) {
    case Dtype::float16: return launch_hinge_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_hinge_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_hinge_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_hinge_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
