// The max form (E7) for half types: sums of w max(q, r) on tensor cores, and for each pair a test of how much precision
// was lost.
//
//   s = b + 2 sum_d w_d max(q_d, r_d) - w.q - w.r
//
// cancels where q and r are large against q - r. So the tensor cores also sum |w| max(q, r), which gives the weighted
// distance t = sum_d |w_d| |q_d - r_d| in the same way. The weighted size is z = sum_d |w_d| (|q_d| + |r_d|). A score
// is kept if kMaxCancellation * t >= z and z <= kMaxSize; NaN, infinities and overflow fail the test (MATH.md, E7). A
// tile of score_kernel with a pair that fails is scored again by E1.
//
//   weight_parts_kernel   weights of each head -> 4 columns of half precision; clears the marks of all tiles
//   row_sums_kernel       each row x           -> w.x, |w|.x, |w|.|x|
//   score_max_kernel      for each query q of a warp:
//                             A = max(q, R)                  R: 16 references x 32 dimensions, in registers
//                             C += A W                       W: 32 dimensions x 8 columns
//                         s = 2 C[w] - w.q - w.r + b,  t = 2 C[|w|] - |w|.q - |w|.r
//                         mark the tile if a pair fails the test
//
// max(q, r) is exact in the half type. A float32 weight is the exact sum of three halves (after all weights of a head
// are multiplied by a power of two). So a head has four columns of W, and a product serves two heads:
//
//   column of W    0        1        2        3       | 4        5        6        7
//                  w part 1 w part 2 w part 3 |w| p.1 | w part 1 w part 2 w part 3 |w| p.1
//                  --------- head 0 ------------------|--------- head 1 ------------------
//   lane of C      t = 0             t = 1            | t = 2             t = 3               (mma.cuh)
//
// Shared memory of a stage: the 64 dimensions are two planes of 32, so that a row of a plane is 64 bytes. With them,
// the 16-byte loads of eight lanes use all 32 banks once.
//
//   plane 0   [64 queries | 64 references | 8 columns of W] x 32 dimensions
//   plane 1   the same rows x the next 32 dimensions
#pragma once

#include "batch.cuh"
#include "mma.cuh"

namespace dissim {
namespace {

constexpr int kPlaneDims = 32;  // dimensions of one mma_m16n8k32
constexpr int kWeightParts = 3;  // halves whose sum is a float32 weight
constexpr int kWeightColumns = 8;  // of W, the width of an mma
constexpr int kColumnsPerHead = kWeightParts + 1;  // and the first part of |w|
constexpr int kHeadsPerProduct = kWeightColumns / kColumnsPerHead;
constexpr int kWeightExponent = 14;  // the largest |w| is scaled into [2^14, 2^15)
constexpr float kMaxCancellation = 4, kMaxSize = 3e38f;  // of the test above

struct MaxTile {
  static constexpr int kWarpQueries = 16, kWarpReferences = 32;  // a warp's part of the tile
  static constexpr int kQueryWarps = 4, kReferenceWarps = 2;  // warps are arranged in this grid
  static constexpr int kQueries = kWarpQueries * kQueryWarps, kReferences = kWarpReferences * kReferenceWarps;
  static constexpr int kRows = kQueries + kReferences + kWeightColumns;  // of a plane
  static constexpr int kStageDims = 64, kStagePlanes = kStageDims / kPlaneDims;
  static constexpr int kStageSize = kRows * kStageDims;  // halves
  static constexpr int kSharedBytes = 2 * kStageSize * 2;
};

// Sums of a row x for one head: w.x, |w|.x and |w|.|x|. They are scaled like the head's weights.
struct RowSums {
  float dot, abs_dot, size;
};

// The workspace of a call.
struct MaxFormPlan {
  int64_t head_groups, padded_dim;  // groups of kHeadsPerProduct heads; dim rounded up to whole stages
  float* unscale;  // [heads]: the inverse of the power of two that scales the weights
  void* weight_columns;  // half [head_groups, kWeightColumns, padded_dim]
  RowSums *query_sums, *reference_sums;  // [batch, rows, heads]
  int* rescore_tile;  // [tiles]: 1 if a pair of this tile of score_kernel fails the test
  int64_t tiles;
};

// The sums of one head from a lane's two neighboring columns of C. Valid in the lanes with even t: their own columns
// are the parts 1 and 2 of w, and the columns of lane t + 1 are part 3 and |w|.
struct HeadSums {
  float dot, abs_dot;
};
__device__ __forceinline__ HeadSums head_sums(float first, float second) {
  return {first + second + __shfl_xor_sync(kAllLanes, first, 1), __shfl_xor_sync(kAllLanes, second, 1)};
}

// |x| of eight halves.
__device__ __forceinline__ uint4 abs_of_halves(const uint4& halves) {
  constexpr unsigned magnitude = 0x7fff7fff;
  return {halves.x & magnitude, halves.y & magnitude, halves.z & magnitude, halves.w & magnitude};
}

// The power of two that brings max_weight into [2^kWeightExponent, 2^(kWeightExponent + 1)); 1 for 0, infinity and NaN.
__device__ __forceinline__ float weight_scale(float max_weight) {
  constexpr int bias = 127, mantissa_bits = 23;
  const int exponent = int(__float_as_uint(max_weight) >> mantissa_bits & 255) - bias;
  const int shift = max_weight > 0 && exponent < 128 ? max(-126, min(127, kWeightExponent - exponent)) : 0;
  return __uint_as_float(unsigned(shift + bias) << mantissa_bits);
}

// Writes the columns of W, a block per group of heads; clears the marks of all tiles.
template <class E>
__global__ void __launch_bounds__(kThreads) weight_parts_kernel(Score p, MaxFormPlan plan) {
  __shared__ float warp_max[kWarps];
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < plan.tiles; i += int64_t(gridDim.x) * kThreads)
    plan.rescore_tile[i] = 0;
#pragma unroll 1
  for (int i = 0; i < kHeadsPerProduct; ++i) {
    const int64_t head = int64_t(blockIdx.x) * kHeadsPerProduct + i;
    const bool head_exists = head < p.heads;
    const float* const weight = static_cast<const float*>(p.weight) + head * p.dim;
    float max_weight = 0;
    for (int64_t d = threadIdx.x; head_exists && d < p.dim; d += kThreads)
      max_weight = fmaxf(max_weight, fabsf(weight[d]));
    for (int offset = kWarp / 2; offset; offset /= 2)
      max_weight = fmaxf(max_weight, __shfl_xor_sync(kAllLanes, max_weight, offset));
    if (threadIdx.x % kWarp == 0) warp_max[threadIdx.x / kWarp] = max_weight;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) max_weight = fmaxf(max_weight, warp_max[warp]);
    const float scale = weight_scale(max_weight);
    if (head_exists && threadIdx.x == 0) plan.unscale[head] = 1 / scale;
    E* const columns =
        static_cast<E*>(plan.weight_columns) + (blockIdx.x * kWeightColumns + i * kColumnsPerHead) * plan.padded_dim;
    for (int64_t d = threadIdx.x; d < plan.padded_dim; d += kThreads) {
      const float w = head_exists && d < p.dim ? weight[d] * scale : 0;
      const E first = from_acc<E>(w), second = from_acc<E>(w - to_acc(first));
      columns[d] = first;
      columns[plan.padded_dim + d] = second;
      columns[2 * plan.padded_dim + d] = from_acc<E>(w - to_acc(first) - to_acc(second));
      columns[3 * plan.padded_dim + d] = from_acc<E>(fabsf(to_acc(first)));
    }
    __syncthreads();
  }
}

constexpr int64_t kRowsPerWarp = 16;  // the height of an mma

// The sums of 16 rows of one side, by a warp. Rows are numbered through all batch entries. The products x W are
// computed by the same instructions in the same order as max(q, r) W, as if they were max(x, -Inf) W. So the tensor
// cores truncate both alike, and most of the truncation error cancels in s.
template <class E>
__device__ __forceinline__ void sum_rows(const Score& p, const Rows& side, int64_t first, const MaxFormPlan& plan,
                                         RowSums* to) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int64_t count = p.batch * side.rows;
  const E* from[2];  // the rows g and g + 8
  for (int i = 0; i < 2; ++i) {
    const int64_t row = min(first + 8 * i + g, count - 1);
    from[i] = static_cast<const E*>(batch_slice<E>(side, row / side.rows).data) + row % side.rows * side.row_stride;
  }
#pragma unroll 1
  for (int64_t group = 0; group < plan.head_groups; ++group) {
    const E* const column = static_cast<const E*>(plan.weight_columns) + (group * kWeightColumns + g) * plan.padded_dim;
    float sums[4] = {}, sizes[4] = {};
#pragma unroll 1
    for (int64_t d = 8 * t; d < plan.padded_dim; d += kPlaneDims) {
      alignas(16) E x[2][8];
#pragma unroll
      for (int i = 0; i < 16; ++i)
        x[i / 8][i % 8] = d + i % 8 < p.dim ? from[i / 8][(d + i % 8) * side.dim_stride] : from_acc<E>(0);
      const uint4 w = *reinterpret_cast<const uint4*>(column + d);
      const uint4 low = *reinterpret_cast<const uint4*>(x[0]), high = *reinterpret_cast<const uint4*>(x[1]);
      mma_m16n8k32<E>(sums, low, high, w);
      mma_m16n8k32<E>(sizes, abs_of_halves(low), abs_of_halves(high), w);
    }
    const int64_t head = group * kHeadsPerProduct + t / 2;
    for (int i = 0; i < 2; ++i) {
      const HeadSums sum = head_sums(sums[2 * i], sums[2 * i + 1]), size = head_sums(sizes[2 * i], sizes[2 * i + 1]);
      if (const int64_t row = first + 8 * i + g; t % 2 == 0 && head < p.heads && row < count)
        to[row * p.heads + head] = {sum.dot, sum.abs_dot, size.abs_dot};
    }
  }
}

// Warps first take all queries, then all references.
template <class E>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(Score p, MaxFormPlan plan) {
  const int64_t warp = linear_block_id() * kWarps + threadIdx.x / kWarp;
  const int64_t query_warps = ceil_div(p.batch * p.query.rows, kRowsPerWarp);
  if (warp < query_warps) {
    sum_rows<E>(p, p.query, warp * kRowsPerWarp, plan, plan.query_sums);
  } else if (warp - query_warps < ceil_div(p.batch * p.reference.rows, kRowsPerWarp)) {
    sum_rows<E>(p, p.reference, (warp - query_warps) * kRowsPerWarp, plan, plan.reference_sums);
  }
}

// Fills stages with passes * kRowsPerPass rows of half precision from row `first` on. A thread loads one chunk of 16
// bytes of every kRowsPerPass-th row. Rows beyond the matrix repeat its last row; their scores are never stored.
constexpr int kChunkHalves = 8, kChunks = MaxTile::kStageDims / kChunkHalves, kRowsPerPass = kThreads / kChunks;

template <class E, bool use_cp_async, int passes>
class HalfLoader {
 public:
  __device__ __forceinline__ HalfLoader(const Rows& rows, int64_t first)
      : dim_stride_(use_cp_async ? 1 : rows.dim_stride), row_stride_(rows.row_stride) {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int64_t first_row = min(first + row, rows.rows - 1);
    rows_after_ = int(min(rows.rows - 1 - first_row, passes * kRowsPerPass));
    const E* const from =
        static_cast<const E*>(rows.data) + first_row * row_stride_ + chunk * kChunkHalves * dim_stride_;
#pragma unroll
    for (int i = 0; i < kPointers; ++i) from_[i] = from + min(i * kRowsPerPass, rows_after_) * row_stride_;
  }

  // Loads the next kStageDims dimensions. `to` is this thread's chunk in the first row; of the chunk, the first `valid`
  // dimensions exist and the others become 0.
  __device__ __forceinline__ void next(E* to, int valid) {
#pragma unroll(use_cp_async ? passes : 1)
    for (int i = 0; i < passes; ++i) {
      E* const slot = to + i * kRowsPerPass * kPlaneDims;
      if constexpr (use_cp_async) {
        cp_async(slot, from_[i], valid * int(sizeof(E)));
      } else {
        const E* const from = from_[0] + min(i * kRowsPerPass, rows_after_) * row_stride_;
        alignas(16) E halves[kChunkHalves];
#pragma unroll
        for (int k = 0; k < kChunkHalves; ++k) halves[k] = k < valid ? from[k * dim_stride_] : from_acc<E>(0);
        uint4 chunk;
        memcpy(&chunk, halves, sizeof(chunk));  // a cast would violate strict aliasing
        *reinterpret_cast<uint4*>(slot) = chunk;
      }
    }
#pragma unroll
    for (int i = 0; i < kPointers; ++i) from_[i] += MaxTile::kStageDims * dim_stride_;
  }

 private:
  // One pointer per pass; without cp.async, registers are scarce and the addresses are recomputed.
  static constexpr int kPointers = use_cp_async ? passes : 1;
  const int64_t dim_stride_, row_stride_;
  int rows_after_;
  const E* from_[kPointers];
};

template <class E, bool use_cp_async>
__global__ void __launch_bounds__(kThreads, 1) score_max_kernel(Score p, MaxFormPlan plan) {
  using T = MaxTile;
  DISSIM_DYNAMIC_SHARED(E, shared);
  const int64_t query_tiles = ceil_div(p.query.rows, T::kQueries),
                reference_tiles = ceil_div(p.reference.rows, T::kReferences);
  const int64_t tile = linear_block_id();
  if (tile >= p.batch * plan.head_groups * query_tiles * reference_tiles) return;
  const int64_t m0 = tile % reference_tiles * T::kReferences, n0 = tile / reference_tiles % query_tiles * T::kQueries;
  const int64_t group = tile / reference_tiles / query_tiles % plan.head_groups;
  const int64_t batch = tile / reference_tiles / query_tiles / plan.head_groups;

  const int dim = int(p.dim);
  const E* const columns = static_cast<const E*>(plan.weight_columns) + group * kWeightColumns * plan.padded_dim;
  const Rows column_rows = {columns, kWeightColumns, 0, plan.padded_dim, 1};
  HalfLoader<E, use_cp_async, T::kQueries / kRowsPerPass> query_loader(batch_slice<E>(p.query, batch), n0);
  HalfLoader<E, use_cp_async, T::kReferences / kRowsPerPass> reference_loader(batch_slice<E>(p.reference, batch), m0);
  HalfLoader<E, true, 1> column_loader(column_rows, 0);
  constexpr int plane_chunks = kPlaneDims / kChunkHalves;
  const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  E* const slot = shared + (chunk / plane_chunks * T::kRows + row) * kPlaneDims + chunk % plane_chunks * kChunkHalves;
  int dims_left = dim - chunk * kChunkHalves;
  const auto load = [&](int stage) {
    const int valid = max(0, min(dims_left, kChunkHalves));
    query_loader.next(slot + stage, valid);
    reference_loader.next(slot + stage + T::kQueries * kPlaneDims, valid);
    if (row < kWeightColumns)
      column_loader.next(slot + stage + (T::kQueries + T::kReferences) * kPlaneDims, kChunkHalves);
    dims_left -= T::kStageDims;
    commit_group();
  };

  // sums[i][j]: C of the warp's query i and its references 16 j to 16 j + 15.
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int warp_query = warp % T::kQueryWarps * T::kWarpQueries;
  const int warp_reference = warp / T::kQueryWarps * T::kWarpReferences;
  float sums[T::kWarpQueries][T::kWarpReferences / 16][4] = {};
  int stage = 0;  // offset of the stage that is read; the other one begins at kStageSize - stage
  load(0);
#pragma unroll 1
  for (int d = 0; d < dim; d += T::kStageDims) {
    wait_group<0>();
    __syncthreads();
    // Now this stage is full, and no thread reads the other one any more.
    if (d + T::kStageDims < dim) load(T::kStageSize - stage);
    const E* const lane_dims = shared + stage + t * 8;
#pragma unroll
    for (int plane = 0; plane < T::kStagePlanes; ++plane) {
      const auto load_row = [&](int row) {
        return *reinterpret_cast<const uint4*>(lane_dims + (plane * T::kRows + row) * kPlaneDims);
      };
      const uint4 w = load_row(T::kQueries + T::kReferences + g);
      uint4 r[T::kWarpReferences / 8];
#pragma unroll
      for (int j = 0; j < T::kWarpReferences / 8; ++j) r[j] = load_row(T::kQueries + warp_reference + 8 * j + g);
#pragma unroll
      for (int i = 0; i < T::kWarpQueries; ++i) {
        const uint4 q = load_row(warp_query + i);
#pragma unroll
        for (int j = 0; j < T::kWarpReferences / 16; ++j)
          mma_m16n8k32<E>(sums[i][j], max_of_halves<E>(q, r[2 * j]), max_of_halves<E>(q, r[2 * j + 1]), w);
      }
    }
    stage = T::kStageSize - stage;
  }

  // The lanes with even t have the sums of a head (head_sums) and store its scores.
  const int64_t head = group * kHeadsPerProduct + t / 2;
  const bool stores = t % 2 == 0 && head < p.heads;
  const float unscale = stores ? plan.unscale[head] : 0,
              bias = stores && p.bias ? static_cast<const float*>(p.bias)[head] : 0;
  bool all_pass = true;
#pragma unroll
  for (int i = 0; i < T::kWarpQueries; ++i) {
    const int64_t n = n0 + warp_query + i;
    RowSums query = {0, 0, 0};
    if (stores && n < p.query.rows) query = plan.query_sums[(batch * p.query.rows + n) * p.heads + head];
#pragma unroll
    for (int j = 0; j < T::kWarpReferences / 8; ++j) {
      const float first = sums[i][j / 2][j % 2 * 2], second = sums[i][j / 2][j % 2 * 2 + 1];
      const HeadSums pair = head_sums(first, second);
      const int64_t m = m0 + warp_reference + 8 * j + g;
      if (!stores || n >= p.query.rows || m >= p.reference.rows) continue;
      const RowSums reference = plan.reference_sums[(batch * p.reference.rows + m) * p.heads + head];
      const float score = unscale * (2 * pair.dot - (query.dot + reference.dot)) + bias;
      const float distance = 2 * pair.abs_dot - (query.abs_dot + reference.abs_dot);
      const float size = query.size + reference.size;
      all_pass = all_pass && distance * kMaxCancellation >= size && size <= kMaxSize;
      static_cast<E*>(p.scores)[((batch * p.heads + head) * p.query.rows + n) * p.reference.rows + m] =
          from_acc<E>(score);
    }
  }
  if (!all_pass) {
    const int64_t rows = Tile<float>::kRows;  // a tile of score_kernel contains several of these tiles
    const int64_t tile_row = (batch * p.heads + head) * ceil_div(p.query.rows, rows) + n0 / rows;
    atomicOr(plan.rescore_tile + tile_row * ceil_div(p.reference.rows, rows) + m0 / rows, 1);
  }
}

}  // namespace
}  // namespace dissim
