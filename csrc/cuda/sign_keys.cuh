// The sign sums of sign_sums.cuh for float32, both sides, with one instruction per sign.
//
// Step 1, keys. A float32 number read as an integer of sign and magnitude has the order of the numbers. Let key(x) be
// that integer in two's complement, of x scaled so that differences of keys do not overflow. Then
//
//   1 + sgn(q - r) = max(0, min(2, key(q) - key(r) + 1))                    (E3)
//
// is one instruction, __viaddmin_s32_relu(key(q) + 1, -key(r), 2): row_keys_kernel stores key + 1 of queries and -key
// of references.
//
// Step 2, no conversion. The integer result 0, 1 or 2, read as float32, is 0, 1 or 2 times 2^-149, the smallest
// subnormal number. A fused multiply-add multiplies it exactly. To keep the product from being subnormal, g is scaled
// by 2^120; the product is then 2^-29 g (1 + sgn), and the sums are scaled by 2^29 at the end.
//
// Step 3, subtract the 1. The sums contain g (1 + sgn), so sum g has to be subtracted. It is summed with the same scale
// in the same order ("grad sums"), so the result is exactly 0 where all pairs tie. The price: roundings are relative to
// the sum of |g| over all pairs, also over those that tie. Where nearly all pairs tie, which is likely among few rows,
// the general kernel is more accurate and is used instead (BackwardLauncher::keys_apply).
//
// Values without a key, and gradients above kMaxGrad, set a flag, and the general kernel then computes the sums.
//
// A block owns kDims dimensions (four per lane), one split of the queries and one split of the references:
//
//   for each 128 queries of the split:                  warp w has 16 of them, with their sums, in registers
//       for each 64 references of the split:
//           load their keys, their sums so far and the scaled g of all 64 x 128 pairs to shared memory
//           for turn = 0 .. 7:
//               __syncthreads
//               warp w processes the references of part (w + turn) % 8:
//                   query_sums[16] and reference_sums[8] += g * (1 + sgn)
//           store the reference sums
//       store the query sums
//   subtract the grad sums from the reference sums of the split and scale them
//
// The rotation lets all warps add to the reference sums in shared memory without atomics: in every turn, each part of 8
// references belongs to one warp. Over the eight turns, each part passes through all warps in a fixed order:
//
//            part:  0   1   2   3   4   5   6   7
//   turn 0   warp:  0   1   2   3   4   5   6   7
//   turn 1   warp:  7   0   1   2   3   4   5   6
//   turn 2   warp:  6   7   0   1   2   3   4   5      and so on
#pragma once

#include "sign_sums.cuh"

namespace dissim {
namespace {

struct KeyTile {
  static constexpr int kWarpQueries = 16, kQueries = kWarps * kWarpQueries;
  static constexpr int kReferences = 64, kTurnReferences = kReferences / kWarps;  // of a block; of a warp in one turn
  static constexpr int kLaneDims = 4, kDims = kWarp * kLaneDims;
  // Keys and sums of the references, gradients of all pairs, grad sums of the references; 4 bytes each.
  static constexpr int kSharedBytes = (2 * kReferences * kDims + kReferences * kQueries + kReferences) * 4;
  static_assert(kQueries == SignTile<float>::kQueries && kDims == SignTile<float>::kDims);
};

// MATH.md ("differences of integer keys") derives these numbers.
constexpr float kKeyScale = 0x1p-64f;  // values below 2^64 become less than 1, so keys stay below 2^30
constexpr float kMaxKeyValue = 0x1p64f;  // larger values have no key
constexpr float kKeySignUnit = 0x1p-149f;  // the integer 1 read as float32
constexpr float kGradScale = 0x1p120f;  // keeps the products with a sign from being subnormal
constexpr float kResultScale = 0x1p29f;  // 1 / (kGradScale * kKeySignUnit)
constexpr float kMaxGrad = 0x1p7f;  // keeps kGradScale * g finite

// In the workspace.
struct SignKeys {
  PathFlags* path;
  int *query, *reference;  // [batch, rows, padded_dim]: key + 1, -key
  float* reference_grad_sums;  // [query splits, batch, heads, tiles of dimensions, references]
};

__global__ void __launch_bounds__(kThreads)
    row_keys_kernel(const float* values, int64_t count, bool is_query, int* to, PathFlags* path) {
  const int64_t index = linear_block_id() * kThreads + threadIdx.x;
  if (index >= count) return;
  const float x = values[index], scaled = x * kKeyScale;
  const bool has_key = fabsf(x) < kMaxKeyValue && scaled * kMaxKeyValue == x;  // the scaling rounded nothing
  if (!has_key) atomicOr(&path->has_no_keys, 1);
  const int bits = has_key ? __float_as_int(scaled) : 0, key = bits < 0 ? -(bits & 0x7fffffff) : bits;
  to[index] = is_query ? key + 1 : -key;
}

// 1 + sgn(q - r) in units of kKeySignUnit.
__device__ __forceinline__ float sign_from_keys(int query_key_plus_1, int minus_reference_key) {
  return __int_as_float(__viaddmin_s32_relu(query_key_plus_1, minus_reference_key, 2));
}

template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    sign_keys_kernel(SignSums<float> s, SignKeys keys, G g, int64_t heads, int64_t batches) {
  using T = KeyTile;
  using V = AlignedVector<float>;
  using K = AlignedVector<int>;
  if (!keys.path->use_keys()) return;
  DISSIM_DYNAMIC_SHARED(float, shared);
  int* const tile_keys = reinterpret_cast<int*>(shared);  // [kReferences][kDims]
  float* const tile_sums = shared + T::kReferences * T::kDims;  // [kReferences][kDims]
  float* const tile_grads = tile_sums + T::kReferences * T::kDims;  // [kReferences][kQueries]
  float* const tile_grad_sums = tile_grads + T::kReferences * T::kQueries;  // [kReferences]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // From the fastest to the slowest: tile of dimensions, split of queries, split of references, head, batch entry.
  const int64_t dim_tiles = s.padded_dim / T::kDims;
  int64_t index = linear_block_id();
  const int64_t dim_tile = index % dim_tiles, d0 = dim_tile * T::kDims + lane * T::kLaneDims;
  const int64_t query_split = (index /= dim_tiles) % s.query_splits;
  const int64_t reference_split = (index /= s.query_splits) % s.reference_splits;
  const int64_t head = (index /= s.reference_splits) % heads, batch = index / heads;
  if (batch >= batches) return;
  const int64_t matrix = batch * heads + head, matrices = batches * heads;
  const int64_t m_begin = reference_split * s.reference_tiles * SignTile<float>::kReferences;
  const int64_t m_end = min(s.references, m_begin + s.reference_tiles * SignTile<float>::kReferences);
  const int64_t n_begin = query_split * s.query_tiles * T::kQueries;
  const int64_t n_end = min(s.queries, n_begin + s.query_tiles * T::kQueries);
  const int* const query_keys = keys.query + batch * s.queries * s.padded_dim + d0;
  const int* const reference_keys = keys.reference + batch * s.references * s.padded_dim + d0;
  float* const query_sums = s.query_sums + (reference_split * matrices + matrix) * s.queries * s.padded_dim + d0;
  float* const reference_sums = s.reference_sums + (query_split * matrices + matrix) * s.references * s.padded_dim + d0;
  const auto matrix_cursor = g.cursor(batch, head);
  float* const reference_grad_sums =
      keys.reference_grad_sums + ((query_split * matrices + matrix) * dim_tiles + dim_tile) * s.references;

#pragma unroll 1
  for (int64_t n0 = n_begin; n0 < n_end; n0 += T::kQueries) {
    const bool first_queries = n0 == n_begin;
    const int queries_left = int(min(n_end - n0, T::kQueries));
    K q[T::kWarpQueries];
    V sums[T::kWarpQueries] = {};
    float query_grad_sum = 0;  // of the warp's query lane % kWarpQueries
#pragma unroll
    for (int i = 0; i < T::kWarpQueries; ++i)
      q[i] = load_vector(query_keys + min(n0 + warp * T::kWarpQueries + i, s.queries - 1) * s.padded_dim);
#pragma unroll 1
    for (int64_t m0 = m_begin; m0 < m_end; m0 += T::kReferences) {
      const int references_left = int(min(m_end - m0, T::kReferences));
      {
        // Warp w copies the references w, w + 8, ...; their sums start at 0 with the first queries.
        const int slot = warp * T::kDims + lane * T::kLaneDims, rows_left = references_left - warp;
        const int sums_left = first_queries ? 0 : rows_left;
        const int* from_keys = reference_keys + (m0 + warp) * s.padded_dim;
        const float* from_sums = reference_sums + (m0 + warp) * s.padded_dim;
#pragma unroll
        for (int i = 0; i < T::kReferences;
             i += kWarps, from_keys += kWarps * s.padded_dim, from_sums += kWarps * s.padded_dim) {
          cp_async(tile_keys + slot + i * T::kDims, from_keys, i < rows_left ? 16 : 0);
          cp_async(tile_sums + slot + i * T::kDims, from_sums, i < sums_left ? 16 : 0);
        }
        commit_group();
        // A thread loads the gradients of one reference with every fourth query; 0 for pairs beyond the matrix.
        constexpr int queries_per_pass = kThreads / T::kReferences;
        const int m = threadIdx.x % T::kReferences, n = threadIdx.x / T::kReferences;
        const int grads_left = m < references_left ? queries_left - n : 0;
        auto cursor = matrix_cursor;
        cursor.advance(n0 + n, m0 + m);
        bool is_large = false;
#pragma unroll G::kUnroll
        for (int i = 0; i < T::kQueries; i += queries_per_pass, cursor.advance(queries_per_pass, 0)) {
          const float grad = i < grads_left ? cursor.load(0) : 0.f;
          is_large |= !(fabsf(grad) <= kMaxGrad);
          tile_grads[m * T::kQueries + n + i] = kGradScale * grad;
        }
        if (is_large) atomicOr(&keys.path->has_large_grads, 1);
        if (n == 0) tile_grad_sums[m] = m < references_left && !first_queries ? reference_grad_sums[m0 + m] : 0.f;
        wait_group<0>();
      }
#pragma unroll 1
      for (int turn = 0; turn < kWarps; ++turn) {
        __syncthreads();
        const int part = (warp + turn) % kWarps * T::kTurnReferences;  // this warp's references of this turn
        const float* const part_grads = tile_grads + part * T::kQueries + warp * T::kWarpQueries;
        float* const part_sums = tile_sums + part * T::kDims + lane * T::kLaneDims;
        const int* const part_keys = tile_keys + part * T::kDims + lane * T::kLaneDims;
        if (lane < T::kTurnReferences) {
          float sum = tile_grad_sums[part + lane];
#pragma unroll
          for (int i = 0; i < T::kWarpQueries; ++i) sum = fmaf(part_grads[lane * T::kQueries + i], kKeySignUnit, sum);
          tile_grad_sums[part + lane] = sum;
        }
#pragma unroll
        for (int m = 0; m < T::kTurnReferences; ++m) {
          const K r = load_vector(part_keys + m * T::kDims);
          V reference_sum = load_vector(part_sums + m * T::kDims);
          query_grad_sum = fmaf(part_grads[m * T::kQueries + lane % T::kWarpQueries], kKeySignUnit, query_grad_sum);
#pragma unroll
          for (int i = 0; i < T::kWarpQueries; i += V::kSize) {
            const V grads = load_vector(part_grads + m * T::kQueries + i);
#pragma unroll
            for (int j = 0; j < V::kSize; ++j)
#pragma unroll
              for (int k = 0; k < T::kLaneDims; ++k) {
                const float sign = sign_from_keys(q[i + j].val[k], r.val[k]);
                sums[i + j].val[k] = fmaf(grads.val[j], sign, sums[i + j].val[k]);
                reference_sum.val[k] = fmaf(grads.val[j], sign, reference_sum.val[k]);
              }
          }
          *reinterpret_cast<V*>(part_sums + m * T::kDims) = reference_sum;
        }
      }
      __syncthreads();
      const float* const from = tile_sums + warp * T::kDims + lane * T::kLaneDims;
      float* to = reference_sums + (m0 + warp) * s.padded_dim;
#pragma unroll
      for (int i = 0; i < T::kReferences; i += kWarps, to += kWarps * s.padded_dim) {
        const V sum = load_vector(from + i * T::kDims);
        if (i < references_left - warp) *reinterpret_cast<V*>(to) = sum;
      }
      if (threadIdx.x < unsigned(references_left)) reference_grad_sums[m0 + threadIdx.x] = tile_grad_sums[threadIdx.x];
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < T::kWarpQueries; ++i) {
      const int64_t n = n0 + warp * T::kWarpQueries + i;
      const float grad_sum = __shfl_sync(kAllLanes, query_grad_sum, i);
#pragma unroll
      for (int k = 0; k < T::kLaneDims; ++k) sums[i].val[k] = (sums[i].val[k] - grad_sum) * kResultScale;
      if (n < n_end) *reinterpret_cast<V*>(query_sums + n * s.padded_dim) = sums[i];
    }
  }
#pragma unroll 1
  for (int64_t m = m_begin + warp; m < m_end; m += kWarps) {
    V sum = load_vector(reference_sums + m * s.padded_dim);
#pragma unroll
    for (int k = 0; k < T::kLaneDims; ++k) sum.val[k] = (sum.val[k] - reference_grad_sums[m]) * kResultScale;
    *reinterpret_cast<V*>(reference_sums + m * s.padded_dim) = sum;
  }
}

}  // namespace
}  // namespace dissim
