// hinge: how far the pairs of every query are inside the margin, by class, and a bit for each that is (E12). A block
// scores a tile, votes its bits and sums its rows; then a thread a query adds the tiles up in order. Hard negatives are
// those not worse than the last that top-k finds: both score with the same instructions, so they agree to the bit.
#include "launchers.h"
#include "select.cuh"
#include "stage.cuh"

namespace dissim {
namespace {

// The scratch of a call: sums of tiles [column tiles][2][queries], and the top-k of hard negatives [queries][kept].
template <class A>
struct Scratch {
  int64_t row_tiles, column_tiles, kept;
  A* sums;
  int64_t* indices;
  A* scores;
  void* of_topk;
};

template <class A>
TopK hardest(const Hinge& p, const Scratch<A>& s) {
  return {p.dtype,
          p.dim,
          s.kept,
          true,
          p.query,
          p.reference,
          p.weight,
          p.bias,
          p.exclude_index,
          p.query_labels,
          p.reference_labels,
          s.scores,
          s.indices};
}

template <class A>
Scratch<A> scratch_of(const Hinge& p, void* workspace) {
  Scratch<A> s{};
  s.row_tiles = ceil_div(p.query.rows, Tile<A>::kRows);
  s.column_tiles = ceil_div(p.reference.rows, Tile<A>::kRows);
  s.kept = p.num_hard_negatives >= p.reference.rows ? -1 : p.num_hard_negatives;  // -1: all
  const int64_t kept = p.query.rows * max(s.kept, 0);
  s.indices = static_cast<int64_t*>(workspace);
  s.of_topk = s.indices + kept;
  const int64_t of_topk = s.kept > 0 ? topk_workspace(hardest(p, s)) / int64_t(sizeof(int64_t)) + 1 : 0;
  s.scores = reinterpret_cast<A*>(s.indices + kept + of_topk);
  s.sums = s.scores + kept;
  return s;
}

template <class A>
int64_t bytes_of(const Hinge& p) {
  const Scratch<A> s = scratch_of<A>(p, nullptr);
  return reinterpret_cast<intptr_t>(s.sums + s.column_tiles * 2 * p.query.rows);
}

// Votes and sums the scores [rows][columns] of a tile's rows from `first` on, a warp for each row.
template <class A>
__device__ __forceinline__ void judge(const Hinge& p, const Scratch<A>& s, const A* scores, int rows, int64_t first,
                                      int64_t column_tile) {
  using T = Tile<A>;
  const int lane = threadIdx.x % kWarp;
  const int64_t bytes = ceil_div(p.reference.rows, 8);
  const A margin = A(p.margin);
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first + row < p.query.rows; row += kWarps) {
    const int64_t n = first + row, label = p.query_labels[n], excluded = p.exclude_index ? p.exclude_index[n] : -1;
    Candidate<A> last = {0, kNoIndex};  // of the negatives that are kept
    if (s.kept > 0 && s.indices[(n + 1) * s.kept - 1] >= 0)
      last = {key_of<A>(s.scores[(n + 1) * s.kept - 1], true), s.indices[(n + 1) * s.kept - 1]};
    A positive = 0, negative = 0;
#pragma unroll 1
    for (int column = lane; column < T::kRows; column += kWarp) {
      const int64_t m = column_tile * T::kRows + column;
      const bool real = m < p.reference.rows && m != excluded, same = real && p.reference_labels[m] == label;
      const A score = scores[row * T::kRows + column], violation = margin - (same ? score : -score);
      const bool hard = s.kept < 0 || (s.kept > 0 && !last.better_than({key_of<A>(score, true), m}));
      const bool kept = real && (same || hard);
      const A cost = kept && !(violation <= 0) ? violation : A(0);  // NaN stays
      positive += same ? cost : A(0);
      negative += same ? A(0) : cost;
      const unsigned active = __ballot_sync(kAll, kept && violation > 0);
      const int64_t byte = (m - lane) / 8 + lane;
      if (lane < kWarp / 8 && byte < bytes) p.active[n * bytes + byte] = uint8_t(active >> (8 * lane));
    }
#pragma unroll
    for (int other = kWarp / 2; other; other /= 2) {
      positive += __shfl_xor_sync(kAll, positive, other);
      negative += __shfl_xor_sync(kAll, negative, other);
    }
    if (lane < 2) s.sums[(column_tile * 2 + lane) * p.query.rows + n] = lane ? negative : positive;
  }
}

template <class E, bool copied>
__global__ void __launch_bounds__(kThreads, kTileBlocks) hinge_kernel(Hinge p, Scratch<Acc<E>> s) {
  using A = Acc<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  const int64_t n0 = blockIdx.x % s.row_tiles * T::kRows;
  A sums[T::kSide][T::kSide];
  score_tile<E, copied>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), n0,
                        blockIdx.x / s.row_tiles * T::kRows, buffers, sums);
  const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
  for (int part = 0; part < kParts<A>; ++part) {
    stage_part<A>(sums, part, bias, buffers);
    __syncthreads();
    judge<A>(p, s, buffers, kPartRows<A>, n0 + part * kPartRows<A>, blockIdx.x / s.row_tiles);
    __syncthreads();
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) hinge_sum_kernel(Hinge p, Scratch<A> s) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.query.rows) return;
  A sums[2] = {0, 0};
  for (int64_t tile = 0; tile < s.column_tiles; ++tile)
    for (int side = 0; side < 2; ++side) sums[side] += s.sums[(tile * 2 + side) * p.query.rows + n];
  static_cast<A*>(p.positive)[n] = sums[0];
  static_cast<A*>(p.negative)[n] = sums[1];
}

template <class E>
void launch_hinge_as(const Hinge& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  const Scratch<A> s = scratch_of<A>(p, workspace);
  if (s.kept > 0) launch_topk(hardest(p, s), s.of_topk, stream);
  const bool can = can_copy<E>(p);
  const auto kernel = can ? hinge_kernel<E, sizeof(E) >= 4> : hinge_kernel<E, false>;
  launch("hinge_kernel", kernel, {s.row_tiles * s.column_tiles, 1}, Tile<A>::kSharedBytes, stream, p, s);
  launch("hinge_sum_kernel", hinge_sum_kernel<A>, {ceil_div(p.query.rows, kThreads), 1}, 0, stream, p, s);
}

}  // namespace

int64_t hinge_workspace(const Hinge& p) { return p.dtype == Dtype::float64 ? bytes_of<double>(p) : bytes_of<float>(p); }

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
