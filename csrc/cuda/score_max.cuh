// E7 for half types: sums of w max(q, r) on matrix units, with a certificate for each pair.
//
// s = 2 sum_d w max(q, r) - w.q - w.r cancels where q and r are large against q - r. So beside w, the matrix units sum
// up |w| max(q, r), which gives t = sum_d |w| |q - r| likewise; a pair is certain if t is no small share of what has
// cancelled, sum_d |w| (|q| + |r|). NaN, infinities and overflow make no pair certain. A tile of pairs that are not all
// certain is marked, and scored again by E1.
//
// max(q, r) is exact in the half type. A weight is the exact sum of three halves, after all weights of a head are
// multiplied by one power of two: of the eight columns of b, a head takes its weight's three parts and |w|'s first one.
#pragma once

#include "batch.cuh"
#include "mma.cuh"

namespace dissim {
namespace {

constexpr int kPlane = 32;  // dimensions that lie together in shared memory: 64 bytes, so rows have no conflicts
constexpr int kDimStep = 64;  // dimensions of a buffer
constexpr int kColumns = 8, kColumnsOfHead = 4, kHeadsAtOnce = kColumns / kColumnsOfHead;
constexpr float kCertain = 4;  // t >= 1 / kCertain of what cancels

struct MaxTile {
  static constexpr int kWarpQueries = 16, kWarpReferences = 32, kQueryWarps = 4, kReferenceWarps = 2;
  static constexpr int kQueries = kWarpQueries * kQueryWarps, kReferences = kWarpReferences * kReferenceWarps;
  static constexpr int kRows = kQueries + kReferences + kColumns;
  static constexpr int kStage = kRows * kDimStep;  // halves
  static constexpr int kSharedBytes = 2 * kStage * 2;
};

// Of a row and a head: w.x, |w|.x, |w|.|x|, with w multiplied by the head's power of two.
struct RowSums {
  float linear, absolute, size;
};

// What is prepared for a call, in its workspace.
struct MaxPlan {
  int64_t pairs_of_heads, depth;  // depth: dim filled up to whole buffers
  float* scale;  // [heads]: the inverse of each head's power of two
  void* columns;  // half [pairs_of_heads, kColumns, depth]
  RowSums *of_query, *of_reference;  // [batch, rows, heads]
  int* uncertain;  // for each tile of E1: whether one of its pairs is uncertain
  int64_t tiles;
};

// w times the head's power of two, which makes the greatest |w| about 2^14: halves still hold the last bits of a
// weight far smaller than that.
__device__ __forceinline__ float power_for(float greatest) {
  const int exponent = int(__float_as_uint(greatest) >> 23 & 255) - 127;
  const int shift = greatest > 0 && exponent < 128 ? max(-126, min(127, 14 - exponent)) : 0;
  return __uint_as_float(unsigned(shift + 127) << 23);
}

// Splits the weights of a pair of heads; one block each. Clears the marks.
template <class E>
__global__ void __launch_bounds__(kThreads) split_weights_kernel(Score p, MaxPlan plan) {
  __shared__ float greatest[kWarps];
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < plan.tiles; i += int64_t(gridDim.x) * kThreads)
    plan.uncertain[i] = 0;
#pragma unroll 1
  for (int i = 0; i < kHeadsAtOnce; ++i) {
    const int64_t head = int64_t(blockIdx.x) * kHeadsAtOnce + i;
    const bool real = head < p.heads;
    const float* const weight = static_cast<const float*>(p.weight) + head * p.dim;
    float most_of = 0;
    for (int64_t d = threadIdx.x; real && d < p.dim; d += kThreads) most_of = fmaxf(most_of, fabsf(weight[d]));
    for (int half = kWarp / 2; half; half /= 2) most_of = fmaxf(most_of, __shfl_xor_sync(kAll, most_of, half));
    if (threadIdx.x % kWarp == 0) greatest[threadIdx.x / kWarp] = most_of;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) most_of = fmaxf(most_of, greatest[warp]);
    const float power = power_for(most_of);
    if (real && threadIdx.x == 0) plan.scale[head] = 1 / power;
    E* const columns = static_cast<E*>(plan.columns) + (blockIdx.x * kColumns + i * kColumnsOfHead) * plan.depth;
    for (int64_t d = threadIdx.x; d < plan.depth; d += kThreads) {
      const float w = real && d < p.dim ? weight[d] * power : 0;
      const E first = narrow<E>(w), second = narrow<E>(w - widen(first));
      columns[d] = first;
      columns[plan.depth + d] = second;
      columns[2 * plan.depth + d] = narrow<E>(w - widen(first) - widen(second));
      columns[3 * plan.depth + d] = narrow<E>(fabsf(widen(first)));
    }
    __syncthreads();
  }
}

// A warp for each row of either side.
template <class E>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(Score p, MaxPlan plan) {
  const int64_t index = task_of_block() * kWarps + threadIdx.x / kWarp, queries = p.batch * p.query.rows;
  if (index >= queries + p.batch * p.reference.rows) return;
  const bool of_query = index < queries;
  const Rows& side = of_query ? p.query : p.reference;
  const int64_t row = of_query ? index : index - queries;
  const Rows rows = entry_of<E>(side, row / side.rows);
  RowSums* const to = (of_query ? plan.of_query : plan.of_reference) + row * p.heads;
#pragma unroll 1
  for (int64_t head = 0; head < p.heads; ++head) {
    const E* const columns = static_cast<const E*>(plan.columns) +
                             (head / kHeadsAtOnce * kColumns + head % kHeadsAtOnce * kColumnsOfHead) * plan.depth;
    RowSums sums = {0, 0, 0};
    for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp) {
      const float x = element_of<E>(rows, row % side.rows, d), absolute = widen(columns[3 * plan.depth + d]);
      const float w = widen(columns[d]) + widen(columns[plan.depth + d]) + widen(columns[2 * plan.depth + d]);
      sums.linear = fmaf(w, x, sums.linear);
      sums.absolute = fmaf(absolute, x, sums.absolute);
      sums.size = fmaf(absolute, fabsf(x), sums.size);
    }
    sums = {sum_of_warp(sums.linear), sum_of_warp(sums.absolute), sum_of_warp(sums.size)};
    if (threadIdx.x % kWarp == 0) to[head] = sums;
  }
}

// A thread's share of filling a buffer: the same 8 of kDimStep dimensions of every 32nd row. Rows beyond the matrix
// repeat its last, for nobody reads what comes of them.
constexpr int kLanes = 8, kChunks = kDimStep / kLanes, kRowsAtOnce = kThreads / kChunks;

template <class E, bool copied, int count>
class HalfLoader {
 public:
  __device__ __forceinline__ HalfLoader(const Rows& rows, int64_t first)
      : dim_stride_(copied ? 1 : rows.dim_stride), row_stride_(rows.row_stride) {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int64_t start = least(first + row, rows.rows - 1);
    rows_after_ = int(least(rows.rows - 1 - start, count * kRowsAtOnce));
    const E* const from = static_cast<const E*>(rows.data) + start * row_stride_ + chunk * kLanes * dim_stride_;
#pragma unroll
    for (int i = 0; i < kPointers; ++i) from_[i] = from + min(i * kRowsAtOnce, rows_after_) * row_stride_;
  }

  // The next dimensions to `to`, this thread's place in the first row; zeros but for the first `lanes`.
  __device__ __forceinline__ void next(E* to, int lanes) {
#pragma unroll(copied ? count : 1)
    for (int i = 0; i < count; ++i) {
      E* const place = to + i * kRowsAtOnce * kPlane;
      if constexpr (copied) {
        copy_async(place, from_[i], lanes * int(sizeof(E)));
      } else {
        const E* const from = from_[0] + min(i * kRowsAtOnce, rows_after_) * row_stride_;
        alignas(16) E v[kLanes];
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane < lanes ? from[lane * dim_stride_] : narrow<E>(0);
        uint4 together;
        memcpy(&together, v, sizeof(together));  // a cast would break the rules of aliasing, and g++ drop the lanes
        *reinterpret_cast<uint4*>(place) = together;
      }
    }
#pragma unroll
    for (int i = 0; i < kPointers; ++i) from_[i] += kDimStep * dim_stride_;
  }

 private:
  static constexpr int kPointers = copied ? count : 1;  // registers are short where lanes are loaded one by one
  const int64_t dim_stride_, row_stride_;
  int rows_after_;
  const E* from_[kPointers];
};

template <class E, bool copied>
__global__ void __launch_bounds__(kThreads, 1) score_max_kernel(Score p, MaxPlan plan) {
  using T = MaxTile;
  DISSIM_DYNAMIC_SHARED(E, shared);
  const int64_t query_tiles = blocks_of(p.query.rows, T::kQueries),
                reference_tiles = blocks_of(p.reference.rows, T::kReferences);
  const int64_t task = task_of_block();
  if (task >= p.batch * plan.pairs_of_heads * query_tiles * reference_tiles) return;
  const int64_t m0 = task % reference_tiles * T::kReferences, n0 = task / reference_tiles % query_tiles * T::kQueries;
  const int64_t heads = task / reference_tiles / query_tiles % plan.pairs_of_heads;
  const int64_t batch = task / reference_tiles / query_tiles / plan.pairs_of_heads;

  const int dim = int(p.dim);
  const Rows columns = {static_cast<const E*>(plan.columns) + heads * kColumns * plan.depth, kColumns, 0, plan.depth,
                        1};
  HalfLoader<E, copied, T::kQueries / kRowsAtOnce> of_queries(entry_of<E>(p.query, batch), n0);
  HalfLoader<E, copied, T::kReferences / kRowsAtOnce> of_references(entry_of<E>(p.reference, batch), m0);
  HalfLoader<E, true, 1> of_columns(columns, 0);
  const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  E* const place = shared + (chunk / 4 * T::kRows + row) * kPlane + chunk % 4 * kLanes;
  int left = dim - chunk * kLanes;
  const auto load = [&](int stage) {
    const int lanes = max(0, min(left, kLanes));
    of_queries.next(place + stage, lanes);
    of_references.next(place + stage + T::kQueries * kPlane, lanes);
    if (row < kColumns)
      of_columns.next(place + stage + (T::kQueries + T::kReferences) * kPlane, left > -kDimStep ? kLanes : 0);
    left -= kDimStep;
    end_group();
  };

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int query = warp % T::kQueryWarps * T::kWarpQueries, reference = warp / T::kQueryWarps * T::kWarpReferences;
  float sums[T::kWarpQueries][T::kWarpReferences / 16][4] = {};
  int now = 0;  // the buffer that is computed with begins here, the other at kStage less that
  load(0);
#pragma unroll 1
  for (int d = 0; d < dim; d += kDimStep) {
    load(T::kStage - now);
    wait_for_groups<1>();
    __syncthreads();
    const E* const stage = shared + now + t * 8;
#pragma unroll
    for (int plane = 0; plane < kDimStep / kPlane; ++plane) {
      // Dimensions 8t .. 8t+7 of a row are this lane's columns of two products: any order does, as b has the same.
      const auto at = [&](int row) {
        return *reinterpret_cast<const uint4*>(stage + (plane * T::kRows + row) * kPlane);
      };
      const uint4 w = at(T::kQueries + T::kReferences + g);
      uint4 r[T::kWarpReferences / 8];
#pragma unroll
      for (int j = 0; j < T::kWarpReferences / 8; ++j) r[j] = at(T::kQueries + reference + 8 * j + g);
#pragma unroll
      for (int i = 0; i < T::kWarpQueries; ++i) {
        const uint4 q = at(query + i);
#pragma unroll
        for (int j = 0; j < T::kWarpReferences / 16; ++j) {
          const uint4 &low = r[2 * j], &high = r[2 * j + 1];
          const unsigned a[4] = {greater<E>(q.x, low.x), greater<E>(q.x, high.x), greater<E>(q.y, low.y),
                                 greater<E>(q.y, high.y)};
          mma_m16n8k16<E>(sums[i][j], a, w.x, w.y);
          const unsigned b[4] = {greater<E>(q.z, low.z), greater<E>(q.z, high.z), greater<E>(q.w, low.w),
                                 greater<E>(q.w, high.w)};
          mma_m16n8k16<E>(sums[i][j], b, w.z, w.w);
        }
      }
    }
    __syncthreads();
    now = T::kStage - now;
  }
  wait_for_groups<0>();

  // Lanes t = 0 and 2 finish the two heads; their neighbours hold the third part and |w|'s sums.
  const int64_t head = heads * kHeadsAtOnce + t / 2;
  const bool finishes = t % 2 == 0 && head < p.heads;
  const float scale = finishes ? plan.scale[head] : 0,
              bias = finishes && p.bias ? static_cast<const float*>(p.bias)[head] : 0;
  bool certain = true;
#pragma unroll
  for (int i = 0; i < T::kWarpQueries; ++i) {
    const int64_t n = n0 + query + i;
    RowSums of_query = {0, 0, 0};
    if (finishes && n < p.query.rows) of_query = plan.of_query[(batch * p.query.rows + n) * p.heads + head];
#pragma unroll
    for (int j = 0; j < T::kWarpReferences / 8; ++j) {
      const float first = sums[i][j / 2][j % 2 * 2], second = sums[i][j / 2][j % 2 * 2 + 1];
      const float linear = first + second + __shfl_xor_sync(kAll, first, 1),
                  absolute = __shfl_xor_sync(kAll, second, 1);
      const int64_t m = m0 + reference + 8 * j + g;
      if (!finishes || n >= p.query.rows || m >= p.reference.rows) continue;
      const RowSums of_reference = plan.of_reference[(batch * p.reference.rows + m) * p.heads + head];
      const float score = scale * (2 * linear - (of_query.linear + of_reference.linear)) + bias;
      const float distance = 2 * absolute - (of_query.absolute + of_reference.absolute);
      const float size = of_query.size + of_reference.size;
      certain = certain && distance * kCertain >= size && size <= 3e38f;
      static_cast<E*>(p.scores)[((batch * p.heads + head) * p.query.rows + n) * p.reference.rows + m] =
          narrow<E>(score);
    }
  }
  if (!certain) {
    const int64_t rows = Tile<float>::kRows;
    plan.uncertain[((batch * p.heads + head) * blocks_of(p.query.rows, rows) + n0 / rows) *
                       blocks_of(p.reference.rows, rows) +
                   m0 / rows] = 1;
  }
}

}  // namespace
}  // namespace dissim
