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

// A head's sums, from two neighbouring columns of a product: its lanes t = 0 and 2 get those of the two heads, whose
// neighbours hold the third part and |w|'s.
struct HeadSums {
  float linear, absolute;
};
__device__ __forceinline__ HeadSums head_sums(float first, float second) {
  return {first + second + __shfl_xor_sync(kAll, first, 1), __shfl_xor_sync(kAll, second, 1)};
}

__device__ __forceinline__ uint4 without_signs(const uint4& halves) {
  constexpr unsigned kept = 0x7fff7fff;
  return {halves.x & kept, halves.y & kept, halves.z & kept, halves.w & kept};
}

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
      const E first = narrow<E>(w), second = narrow<E>(w - to_acc(first));
      columns[d] = first;
      columns[plan.depth + d] = second;
      columns[2 * plan.depth + d] = narrow<E>(w - to_acc(first) - to_acc(second));
      columns[3 * plan.depth + d] = narrow<E>(fabsf(to_acc(first)));
    }
    __syncthreads();
  }
}

constexpr int64_t kRowsOfWarp = 16;

// Of 16 rows of a side, each given by its number in the batch, the sums of two heads; a warp for them. They are
// products of max(x, -Inf) with the same columns, in the same order as those of max(q, r): what matrix units cut off of
// the ones they cut off of the others, and most of it cancels.
template <class E>
__device__ __forceinline__ void sum_rows(const Score& p, const Rows& side, int64_t first, const MaxPlan& plan,
                                         RowSums* to) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int64_t count = p.batch * side.rows;
  const E* from[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t row = min(first + 8 * i + g, count - 1);
    from[i] = static_cast<const E*>(entry_of<E>(side, row / side.rows).data) + row % side.rows * side.row_stride;
  }
#pragma unroll 1
  for (int64_t heads = 0; heads < plan.pairs_of_heads; ++heads) {
    const E* const columns = static_cast<const E*>(plan.columns) + (heads * kColumns + g) * plan.depth;
    float sums[4] = {}, sizes[4] = {};
#pragma unroll 1
    for (int64_t d = 8 * t; d < plan.depth; d += kPlane) {
      alignas(16) E x[2][8];
#pragma unroll
      for (int i = 0; i < 16; ++i)
        x[i / 8][i % 8] = d + i % 8 < p.dim ? from[i / 8][(d + i % 8) * side.dim_stride] : narrow<E>(0);
      const uint4 w = *reinterpret_cast<const uint4*>(columns + d);
      const uint4 low = *reinterpret_cast<const uint4*>(x[0]), high = *reinterpret_cast<const uint4*>(x[1]);
      multiply_add<E>(sums, low, high, w);
      multiply_add<E>(sizes, without_signs(low), without_signs(high), w);
    }
    const int64_t head = heads * kHeadsAtOnce + t / 2;
    for (int i = 0; i < 2; ++i) {
      const HeadSums found = head_sums(sums[2 * i], sums[2 * i + 1]), size = head_sums(sizes[2 * i], sizes[2 * i + 1]);
      if (const int64_t row = first + 8 * i + g; t % 2 == 0 && head < p.heads && row < count)
        to[row * p.heads + head] = {found.linear, found.absolute, size.absolute};
    }
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(Score p, MaxPlan plan) {
  const int64_t task = task_of_block() * kWarps + threadIdx.x / kWarp;
  const int64_t of_query = ceil_div(p.batch * p.query.rows, kRowsOfWarp);
  if (task < of_query) {
    sum_rows<E>(p, p.query, task * kRowsOfWarp, plan, plan.of_query);
  } else if (task - of_query < ceil_div(p.batch * p.reference.rows, kRowsOfWarp)) {
    sum_rows<E>(p, p.reference, (task - of_query) * kRowsOfWarp, plan, plan.of_reference);
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
    const int64_t start = min(first + row, rows.rows - 1);
    rows_after_ = int(min(rows.rows - 1 - start, count * kRowsAtOnce));
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
  const int64_t query_tiles = ceil_div(p.query.rows, T::kQueries),
                reference_tiles = ceil_div(p.reference.rows, T::kReferences);
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
    if (row < kColumns) of_columns.next(place + stage + (T::kQueries + T::kReferences) * kPlane, kLanes);
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
    wait_for_groups<0>();
    // Now this buffer is full, and nobody reads the other any more.
    __syncthreads();
    if (d + kDimStep < dim) load(T::kStage - now);
    const E* const stage = shared + now + t * 8;
#pragma unroll
    for (int plane = 0; plane < kDimStep / kPlane; ++plane) {
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
        for (int j = 0; j < T::kWarpReferences / 16; ++j)
          multiply_add<E>(sums[i][j], greater<E>(q, r[2 * j]), greater<E>(q, r[2 * j + 1]), w);
      }
    }
    now = T::kStage - now;
  }

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
      const HeadSums found = head_sums(first, second);
      const int64_t m = m0 + reference + 8 * j + g;
      if (!finishes || n >= p.query.rows || m >= p.reference.rows) continue;
      const RowSums of_reference = plan.of_reference[(batch * p.reference.rows + m) * p.heads + head];
      const float score = scale * (2 * found.linear - (of_query.linear + of_reference.linear)) + bias;
      const float distance = 2 * found.absolute - (of_query.absolute + of_reference.absolute);
      const float size = of_query.size + of_reference.size;
      certain = certain && distance * kCertain >= size && size <= 3e38f;
      static_cast<E*>(p.scores)[((batch * p.heads + head) * p.query.rows + n) * p.reference.rows + m] =
          narrow<E>(score);
    }
  }
  if (!certain) {
    const int64_t rows = Tile<float>::kRows;
    const int64_t tile = (batch * p.heads + head) * ceil_div(p.query.rows, rows) + n0 / rows;
    atomicOr(plan.uncertain + tile * ceil_div(p.reference.rows, rows) + m0 / rows, 1);
  }
}

}  // namespace
}  // namespace dissim
