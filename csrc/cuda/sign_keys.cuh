// The sign sums of sign_sums.cuh for float32 sums of both sides, with a sign in one instruction:
// 1 + sgn(q - r) = max(0, min(2, key(q) - key(r) + 1)), where keys are integers in the order of the numbers (E3).
//
// Taken for a float, that integer is so many times the least number there is, 2^-149, which a fused multiply-add
// multiplies as exactly as any other; g is enlarged, so that the products are not small. The sums of g that are too
// much are summed up beside, in the same order, so that they cancel to the last bit where all pairs tie. Where nearly
// all do, what is left has the roundings of all |g|, not of those alone that it sums; so few rows are left to the
// general kernel. So is what has no key or is too large; the numbers decide, on the device.
#pragma once

#include "sign_sums.cuh"

namespace dissim {
namespace {

struct KeyTile {
  // Queries of a warp and of a block, references at a time and in a warp's turn, dimensions of a block: four a lane.
  static constexpr int kSide = 16, kQueries = kWarps * kSide, kReferences = 64, kTurn = kReferences / kWarps;
  static constexpr int kLanes = 4, kDims = kWarp * kLanes;
  static constexpr int kSharedBytes = (2 * kReferences * kDims + kReferences * kQueries + kReferences) * 4;
  static_assert(kQueries == SignTile<float>::kQueries && kDims == SignTile<float>::kDims);
};

// Keys of numbers below 2 differ by less than 2^31; so numbers are divided by 2^64 first.
constexpr float kShrink = 0x1p-64f, kLargest = 0x1p64f;
// Of g, of a sign, and what takes their products back. Sums are within 2^-121 where all g are below 2^-97.
constexpr float kEnlarge = 0x1p120f, kUnit = 0x1p-149f, kResult = 0x1p29f, kLargestGrad = 0x1p7f;

struct SignKeys {
  Route* route;
  int *query, *reference;  // [batch, rows, depth]: key + 1, -key
  float* biases;  // [splits of queries, batch, heads, tiles of dimensions, references]
};

__global__ void __launch_bounds__(kThreads)
    row_keys_kernel(const float* values, int64_t count, bool of_query, int* to, Route* route) {
  const int64_t index = task_of_block() * kThreads + threadIdx.x;
  if (index >= count) return;
  const float x = values[index], shrunk = x * kShrink;
  const bool fits = fabsf(x) < kLargest && shrunk * kLargest == x;
  if (!fits) atomicOr(&route->no_keys, 1);
  const int bits = fits ? __float_as_int(shrunk) : 0, key = bits < 0 ? -(bits & 0x7fffffff) : bits;
  to[index] = of_query ? key + 1 : -key;
}

template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    sign_keys_kernel(SignSums<float> s, SignKeys keys, G g, int64_t heads, int64_t batches) {
  using T = KeyTile;
  using V = Vector<float>;
  using K = Vector<int>;
  if (!keys.route->by_keys()) return;
  DISSIM_DYNAMIC_SHARED(float, shared);
  int* const of_reference = reinterpret_cast<int*>(shared);  // [kReferences][kDims]
  float* const sums_of_reference = shared + T::kReferences * T::kDims;  // [kReferences][kDims]
  float* const of_grad = sums_of_reference + T::kReferences * T::kDims;  // [kReferences][kQueries]
  float* const biases = of_grad + T::kReferences * T::kQueries;  // [kReferences]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tiles = s.depth / T::kDims;
  int64_t task = task_of_block();
  const int64_t tile = task % tiles, d0 = tile * T::kDims + lane * T::kLanes;
  const int64_t query_split = (task /= tiles) % s.query_splits;
  const int64_t reference_split = (task /= s.query_splits) % s.reference_splits;
  const int64_t head = (task /= s.reference_splits) % heads, batch = task / heads;
  if (batch >= batches) return;
  const int64_t entry = batch * heads + head, entries = batches * heads;
  const int64_t m_begin = reference_split * s.reference_tiles * SignTile<float>::kReferences;
  const int64_t m_end = min(s.references, m_begin + s.reference_tiles * SignTile<float>::kReferences);
  const int64_t n_begin = query_split * s.query_tiles * T::kQueries;
  const int64_t n_end = min(s.queries, n_begin + s.query_tiles * T::kQueries);
  const int* const query = keys.query + batch * s.queries * s.depth + d0;
  const int* const reference = keys.reference + batch * s.references * s.depth + d0;
  float* const to_query = s.query_sums + (reference_split * entries + entry) * s.queries * s.depth + d0;
  float* const to_reference = s.reference_sums + (query_split * entries + entry) * s.references * s.depth + d0;
  const auto grad_of_entry = g.from(batch, head);
  float* const to_biases = keys.biases + ((query_split * entries + entry) * tiles + tile) * s.references;

#pragma unroll 1
  for (int64_t n0 = n_begin; n0 < n_end; n0 += T::kQueries) {
    const bool first = n0 == n_begin;
    const int queries_left = int(min(n_end - n0, T::kQueries));
    K q[T::kSide];
    V sums[T::kSide] = {};
    float bias = 0;  // of query lane % kSide
#pragma unroll
    for (int i = 0; i < T::kSide; ++i)
      q[i] = *reinterpret_cast<const K*>(query + min(n0 + warp * T::kSide + i, s.queries - 1) * s.depth);
#pragma unroll 1
    for (int64_t m0 = m_begin; m0 < m_end; m0 += T::kReferences) {
      const int references_left = int(min(m_end - m0, T::kReferences));
      {  // what lies beyond the matrices has g = 0
        const int place = warp * T::kDims + lane * T::kLanes, real = references_left - warp, stored = first ? 0 : real;
        const int* keys_from = reference + (m0 + warp) * s.depth;
        const float* from = to_reference + (m0 + warp) * s.depth;
#pragma unroll
        for (int i = 0; i < T::kReferences; i += kWarps, keys_from += kWarps * s.depth, from += kWarps * s.depth) {
          copy_async(of_reference + place + i * T::kDims, keys_from, i < real ? 16 : 0);
          copy_async(sums_of_reference + place + i * T::kDims, from, i < stored ? 16 : 0);
        }
        end_group();
        constexpr int at_once = kThreads / T::kReferences;
        const int m = threadIdx.x % T::kReferences, n = threadIdx.x / T::kReferences;
        const int real_grads = m < references_left ? queries_left - n : 0;
        auto from_grad = grad_of_entry;
        from_grad.move(n0 + n, m0 + m);
        bool large = false;
#pragma unroll G::kAtOnce
        for (int i = 0; i < T::kQueries; i += at_once, from_grad.move(at_once, 0)) {
          const float grad = i < real_grads ? from_grad.value(0) : 0.f;
          large |= !(fabsf(grad) <= kLargestGrad);
          of_grad[m * T::kQueries + n + i] = kEnlarge * grad;
        }
        if (large) atomicOr(&keys.route->large_grads, 1);
        if (n == 0) biases[m] = m < references_left && !first ? to_biases[m0 + m] : 0.f;
        wait_for_groups<0>();
      }
#pragma unroll 1
      for (int turn = 0; turn < kWarps; ++turn) {
        __syncthreads();
        const int mine = (warp + turn) % kWarps * T::kTurn;
        const float* const grads = of_grad + mine * T::kQueries + warp * T::kSide;
        float* const sums_of_turn = sums_of_reference + mine * T::kDims + lane * T::kLanes;
        const int* const references = of_reference + mine * T::kDims + lane * T::kLanes;
        if (lane < T::kTurn) {
          float sum = biases[mine + lane];
#pragma unroll
          for (int i = 0; i < T::kSide; ++i) sum = fmaf(grads[lane * T::kQueries + i], kUnit, sum);
          biases[mine + lane] = sum;
        }
#pragma unroll
        for (int m = 0; m < T::kTurn; ++m) {
          const K r = *reinterpret_cast<const K*>(references + m * T::kDims);
          V sum = *reinterpret_cast<const V*>(sums_of_turn + m * T::kDims);
          bias = fmaf(grads[m * T::kQueries + lane % T::kSide], kUnit, bias);
#pragma unroll
          for (int i = 0; i < T::kSide; i += T::kLanes) {
            const V weights = *reinterpret_cast<const V*>(grads + m * T::kQueries + i);
#pragma unroll
            for (int j = 0; j < T::kLanes; ++j)
#pragma unroll
              for (int k = 0; k < T::kLanes; ++k) {
                const float sign = __int_as_float(__viaddmin_s32_relu(q[i + j].lane[k], r.lane[k], 2));
                sums[i + j].lane[k] = fmaf(weights.lane[j], sign, sums[i + j].lane[k]);
                sum.lane[k] = fmaf(weights.lane[j], sign, sum.lane[k]);
              }
          }
          *reinterpret_cast<V*>(sums_of_turn + m * T::kDims) = sum;
        }
      }
      __syncthreads();
      const float* const place = sums_of_reference + warp * T::kDims + lane * T::kLanes;
      float* to = to_reference + (m0 + warp) * s.depth;
#pragma unroll
      for (int i = 0; i < T::kReferences; i += kWarps, to += kWarps * s.depth) {
        const V sum = *reinterpret_cast<const V*>(place + i * T::kDims);
        if (i < references_left - warp) *reinterpret_cast<V*>(to) = sum;
      }
      if (threadIdx.x < unsigned(references_left)) to_biases[m0 + threadIdx.x] = biases[threadIdx.x];
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < T::kSide; ++i) {
      const int64_t n = n0 + warp * T::kSide + i;
      const float too_much = __shfl_sync(kAll, bias, i);
#pragma unroll
      for (int k = 0; k < T::kLanes; ++k) sums[i].lane[k] = (sums[i].lane[k] - too_much) * kResult;
      if (n < n_end) *reinterpret_cast<V*>(to_query + n * s.depth) = sums[i];
    }
  }
#pragma unroll 1
  for (int64_t m = m_begin + warp; m < m_end; m += kWarps) {
    V sum = *reinterpret_cast<const V*>(to_reference + m * s.depth);
#pragma unroll
    for (int k = 0; k < T::kLanes; ++k) sum.lane[k] = (sum.lane[k] - to_biases[m]) * kResult;
    *reinterpret_cast<V*>(to_reference + m * s.depth) = sum;
  }
}

}  // namespace
}  // namespace dissim
