// logsumexp: for every query, the log-sum-exp of its scores times a scale, the mean score under its softmax, and one
// bit for each pair whose share is above rounding (E15).
//
//   logsumexp_kernel        scores a tile of pairs, then a warp per query row writes its bits and the tile's RowSum
//   logsumexp_merge_kernel  adds up the RowSums of a query over the tiles, in order; a warp per query
//
// A bit is set if the pair's term exceeds u / M of the sum of its tile. The merge clears the bits of a tile that as a
// whole holds at most that share of its row for each of its pairs.
#include "batch.cuh"
#include "candidates.cuh"
#include "launchers.h"
#include "tile_scores.cuh"

namespace dissim {
namespace {

// Over some pairs of a row: the largest logit, the sum of exp(logit - shift), and the sum of that times the score.
template <class A>
struct RowSum {
  A largest, sum, weighted;
};

// What is subtracted from the logits: the largest, or 0 if that is infinite.
template <class A>
__device__ __forceinline__ A shift_of(A largest) {
  return largest - largest == 0 ? largest : A(0);
}

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }

template <class A>
__device__ __forceinline__ A warp_max(A x) {  // ignores NaN
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

// u / M
template <class A>
__device__ __forceinline__ A min_share(const LogSumExp& p) {
  return A(sizeof(A) == 4 ? 0x1p-24 : 0x1p-53) / A(p.reference.rows);
}

__device__ __forceinline__ bool is_kept(const LogSumExp& p, int64_t n, int64_t m) {
  return m < p.reference.rows && is_candidate(p.filter, n, m);
}

// Stores the warp's 32 bits of references m - lane to m - lane + 31 by its first four lanes.
__device__ __forceinline__ void store_bits(const LogSumExp& p, int64_t n, int64_t m, bool bit) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row_bytes = ceil_div(p.reference.rows, 8), byte = (m - lane) / 8 + lane;
  const unsigned bits = __ballot_sync(kAllLanes, bit);
  if (lane < kWarp / 8 && byte < row_bytes) p.active[n * row_bytes + byte] = uint8_t(bits >> (8 * lane));
}

// Writes bits and RowSums of a tile's queries from `first_query` on, a warp per query. scores: [rows][T::kRows].
template <class A>
__device__ __forceinline__ void logsumexp_epilogue(const LogSumExp& p, RowSum<A>* tile_sums, const A* scores, int rows,
                                                   int64_t first_query, int64_t first_reference) {
  using T = Tile<A>;
  constexpr int kLaneScores = T::kRows / kWarp;
  const int lane = threadIdx.x % kWarp;
  const A scale = *static_cast<const A*>(p.scale), infinity = A(INFINITY);
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first_query + row < p.query.rows; row += kWarps) {
    const int64_t n = first_query + row;
    const A* const row_scores = scores + row * T::kRows;
    A logits[kLaneScores], largest = -infinity;
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) {
      const int column = i * kWarp + lane;
      logits[i] = is_kept(p, n, first_reference + column) ? row_scores[column] * scale : -infinity;
      largest = logits[i] > largest ? logits[i] : largest;
    }
    largest = warp_max(largest);
    A sum = 0, weighted = 0;
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) {
      logits[i] = exp_of(logits[i] - shift_of(largest));
      sum += logits[i];
      weighted += logits[i] == 0 ? A(0) : logits[i] * row_scores[i * kWarp + lane];  // not 0 * infinity
    }
    sum = warp_sum(sum);
    weighted = warp_sum(weighted);
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) {
      const int64_t m = first_reference + i * kWarp + lane;
      store_bits(p, n, m, !(logits[i] <= min_share<A>(p) * sum) && is_kept(p, n, m));
    }
    if (lane == 0) tile_sums[first_reference / T::kRows * p.query.rows + n] = {largest, sum, weighted};
  }
}

template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, kTileBlocksPerSM)
    logsumexp_kernel(LogSumExp p, RowSum<Acc<E>>* tile_sums, int64_t row_tiles) {
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
    logsumexp_epilogue<A>(p, tile_sums, buffers, kPassRows<A>, n0 + pass * kPassRows<A>, m0);
    __syncthreads();
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    logsumexp_merge_kernel(LogSumExp p, const RowSum<A>* tile_sums, int64_t column_tiles) {
  constexpr int kTileBytes = Tile<A>::kRows / 8;
  const int64_t n = linear_block_id() * kWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (n >= p.query.rows) return;
  A largest = -A(INFINITY);
  for (int64_t tile = lane; tile < column_tiles; tile += kWarp) {
    const A other = tile_sums[tile * p.query.rows + n].largest;
    largest = other > largest ? other : largest;
  }
  const A shift = shift_of(warp_max(largest));
  A sum = 0, weighted = 0;
  const auto factor_of = [&](const RowSum<A>& some) {
    return some.sum == 0 ? A(0) : exp_of(shift_of(some.largest) - shift);
  };
  for (int64_t tile = lane; tile < column_tiles; tile += kWarp) {
    const RowSum<A> some = tile_sums[tile * p.query.rows + n];
    sum += some.sum * factor_of(some);
    weighted += some.weighted * factor_of(some);
  }
  sum = warp_sum(sum);
  weighted = warp_sum(weighted);
  const A value = log_of(sum) + shift;
  if (lane == 0) {
    static_cast<A*>(p.value)[n] = value;
    static_cast<A*>(p.mean_score)[n] = sum == 0 ? A(0) : weighted / sum;
  }
  if (!(value < A(INFINITY))) {  // NaN or infinity: some kept pairs of the row have a NaN gradient
    for (int64_t m = lane; m - lane < p.reference.rows; m += kWarp) store_bits(p, n, m, is_kept(p, n, m));
    return;
  }
  const int64_t row_bytes = ceil_div(p.reference.rows, 8);
  for (int64_t tile = lane; tile < column_tiles; tile += kWarp) {
    const RowSum<A> some = tile_sums[tile * p.query.rows + n];
    const int64_t pairs = min(Tile<A>::kRows, p.reference.rows - tile * Tile<A>::kRows);
    if (some.sum * factor_of(some) <= A(pairs) * min_share<A>(p) * sum)
      for (int64_t byte = tile * kTileBytes; byte < min((tile + 1) * kTileBytes, row_bytes); ++byte)
        p.active[n * row_bytes + byte] = 0;
  }
}

template <class E>
void launch_logsumexp_as(const LogSumExp& p, void* workspace, Stream stream) {
  using A = Acc<E>;
  const int64_t row_tiles = ceil_div(p.query.rows, Tile<A>::kRows);
  const int64_t column_tiles = ceil_div(p.reference.rows, Tile<A>::kRows);
  RowSum<A>* const tile_sums = static_cast<RowSum<A>*>(workspace);
  const auto kernel = is_16B_aligned<E>(p) ? logsumexp_kernel<E, sizeof(E) >= 4> : logsumexp_kernel<E, false>;
  launch("logsumexp_kernel", kernel, {row_tiles * column_tiles, 1}, Tile<A>::kSharedBytes, stream, p, tile_sums,
         row_tiles);
  launch("logsumexp_merge_kernel", logsumexp_merge_kernel<A>, grid_for(ceil_div(p.query.rows, kWarps)), 0, stream, p,
         static_cast<const RowSum<A>*>(tile_sums), column_tiles);
}

template <class A>
int64_t workspace_bytes(const LogSumExp& p) {
  return ceil_div(p.reference.rows, Tile<A>::kRows) * p.query.rows * int64_t(sizeof(RowSum<A>));
}

}  // namespace

int64_t logsumexp_workspace(const LogSumExp& p) {
  return p.dtype == Dtype::float64 ? workspace_bytes<double>(p) : workspace_bytes<float>(p);
}

void launch_logsumexp(const LogSumExp& p, void* workspace, Stream stream) {
  if (p.query.rows == 0) return;
  switch (p.dtype) {
    case Dtype::float16: return launch_logsumexp_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_logsumexp_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_logsumexp_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_logsumexp_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
