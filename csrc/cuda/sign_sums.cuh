// The two sign sums of E2, A[n] = sum_m g[n, m] sgn(q_n - r_m) and B[m] = sum_n g[n, m] sgn(q_n - r_m): a sign serves
// both sides.
//
// A block owns kDims dimensions, 16 bytes of them a lane, and splits of both sides' rows. Its warps hold the signs'
// sums of kSide queries each in registers while the references pass; of a reference, every warp adds up its own
// queries, and the block the warps. No two blocks add to one number: a share has partial sums of its own, added up in
// fixed order.
#pragma once

#include "batch.cuh"

namespace dissim {
namespace {

template <class A>
struct SignTile {
  static constexpr int kLanes = Vector<A>::kLanes, kDims = kWarp * kLanes;
  static constexpr int kSide = sizeof(A) == 4 ? 16 : 8;             // queries of a warp
  static constexpr int kQueries = kWarps * kSide, kReferences = 8;  // of a block at a time
  static constexpr int kSharedBytes = kReferences * (kQueries + kDims + kWarps * kDims) * int(sizeof(A));
};

// Rows widened and filled up with zeros to whole tiles of dimensions, and the sums, in the workspace.
template <class A>
struct SignSums {
  int64_t queries, references, depth;    // rows; depth: dimensions with those filled up
  int64_t query_splits, reference_splits;
  int64_t query_tiles, reference_tiles;  // of a split
  A *query, *reference;                  // [batch, rows, depth]
  A *query_sums, *reference_sums;        // [splits of the other side, batch, heads, rows, depth]
};

// Which kernel computes the sums: the numbers decide, on the device.
struct Route {
  int no_keys;      // not 0: a row has no key (sign_keys.cuh), or keys do not serve the problem
  int large_grads;  // an upstream gradient is too large for keys
  int few_pairs;    // few pairs have an upstream gradient (sparse_gradient.cuh)

  __device__ bool by_keys() const { return !few_pairs && !no_keys; }
  __device__ bool general() const { return !few_pairs && (no_keys | large_grads); }
};

// E3: sgn(q - r) by comparison, 0 at ties and at NaN.
template <class A>
__device__ __forceinline__ A sign(A q, A r) {
  return (q > r ? A(1) : A(0)) - (q < r ? A(1) : A(0));
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    to_acc_rows_kernel(Rows rows, int64_t batch, int64_t dim, int64_t depth, Acc<E>* to) {
  const int64_t index = task_of_block() * kThreads + threadIdx.x, row = index / depth, d = index % depth;
  if (row < batch * rows.rows)
    to[index] = d < dim ? element_of<E>(entry_of<E>(rows, row / rows.rows), row % rows.rows, d) : 0;
}

// A task is a tile of dimensions, a share of either side, a head and a batch entry. G is a source of upstream
// gradients: from(batch, head) is a cursor at the first pair, which can move(rows, columns) and has the value(columns)
// of the pair so many columns on; of kAtOnce rows a thread may read ahead.
template <class G, bool both>
__global__ void __launch_bounds__(kThreads, 1)
    sign_sums_kernel(SignSums<typename G::Acc> s, G g, int64_t heads, int64_t batches, const Route* route) {
  using A = typename G::Acc;
  using T = SignTile<A>;
  using V = Vector<A>;
  if (!route->general()) return;
  DISSIM_DYNAMIC_SHARED(A, shared);
  A* const of_grad = shared;                                   // [kReferences][kQueries]
  A* const of_reference = of_grad + T::kReferences * T::kQueries;  // [kReferences][kDims]
  A* const of_warps = of_reference + T::kReferences * T::kDims;    // [kReferences][kWarps][kDims]

  const int64_t tiles = s.depth / T::kDims;
  int64_t task = task_of_block();
  const int64_t d0 = task % tiles * T::kDims;
  const int64_t query_split = (task /= tiles) % s.query_splits;
  const int64_t reference_split = (task /= s.query_splits) % s.reference_splits;
  const int64_t head = (task /= s.reference_splits) % heads, batch = task / heads;
  if (batch >= batches) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t entry = batch * heads + head, entries = batches * heads;
  const int64_t first_reference = reference_split * s.reference_tiles * T::kReferences;
  const int64_t end_reference = min(s.references, first_reference + s.reference_tiles * T::kReferences);

  // This thread's part of filling the buffers: four or two gradients of one query, 16 bytes of a reference.
  constexpr int kGrads = T::kReferences * T::kQueries / kThreads;
  const int grad_query = threadIdx.x % T::kQueries, grad_reference = threadIdx.x / T::kQueries * kGrads;
  const A* const reference = s.reference + batch * s.references * s.depth + d0 + lane * T::kLanes;
  const A* const query = s.query + batch * s.queries * s.depth + d0 + lane * T::kLanes;
  A* const sums_of_reference =
      s.reference_sums + (query_split * entries + entry) * s.references * s.depth + d0 + lane * T::kLanes;

#pragma unroll 1
  for (int tile = 0; tile < s.query_tiles; ++tile) {
    const int64_t n0 = (query_split * s.query_tiles + tile) * T::kQueries;
    if (n0 >= s.queries) break;
    const bool first = tile == 0;
    V q[T::kSide], sums[T::kSide] = {};
#pragma unroll
    for (int i = 0; i < T::kSide; ++i)
      q[i] = *reinterpret_cast<const V*>(query + min(n0 + warp * T::kSide + i, s.queries - 1) * s.depth);

    A grads[kGrads];
    V next;
    auto from = g.from(batch, head);
    from.move(min(n0 + grad_query, s.queries - 1), first_reference + grad_reference);
    const bool real = n0 + grad_query < s.queries;
    const auto fetch = [&](int64_t m0) {
      const int left = real ? int(min(end_reference - m0, T::kReferences)) - grad_reference : 0;
#pragma unroll
      for (int i = 0; i < kGrads; ++i) grads[i] = i < left ? from.value(i) : A(0);
      from.move(0, T::kReferences);
      next = *reinterpret_cast<const V*>(reference + min(m0 + warp, s.references - 1) * s.depth);
    };
    fetch(first_reference);
#pragma unroll 1
    for (int64_t m0 = first_reference; m0 < end_reference; m0 += T::kReferences) {
#pragma unroll
      for (int i = 0; i < kGrads; ++i) of_grad[(grad_reference + i) * T::kQueries + grad_query] = grads[i];
      *reinterpret_cast<V*>(of_reference + warp * T::kDims + lane * T::kLanes) = next;
      __syncthreads();
      if (m0 + T::kReferences < end_reference) fetch(m0 + T::kReferences);
#pragma unroll 1
      for (int m = 0; m < T::kReferences; ++m) {
        const V r = *reinterpret_cast<const V*>(of_reference + m * T::kDims + lane * T::kLanes);
        V sum = {};
#pragma unroll
        for (int i = 0; i < T::kSide; i += T::kLanes) {
          const V weights = *reinterpret_cast<const V*>(of_grad + m * T::kQueries + warp * T::kSide + i);
#pragma unroll
          for (int j = 0; j < T::kLanes; ++j)
#pragma unroll
            for (int k = 0; k < T::kLanes; ++k) {
              const A sgn = sign(q[i + j].lane[k], r.lane[k]);
              sums[i + j].lane[k] += weights.lane[j] * sgn;
              if (both) sum.lane[k] += weights.lane[j] * sgn;
            }
        }
        if (both) *reinterpret_cast<V*>(of_warps + (m * kWarps + warp) * T::kDims + lane * T::kLanes) = sum;
      }
      __syncthreads();
      if (both && m0 + warp < end_reference) {
        V sum = *reinterpret_cast<const V*>(of_warps + warp * kWarps * T::kDims + lane * T::kLanes);
#pragma unroll
        for (int i = 1; i < kWarps; ++i) {
          const V other = *reinterpret_cast<const V*>(of_warps + (warp * kWarps + i) * T::kDims + lane * T::kLanes);
#pragma unroll
          for (int k = 0; k < T::kLanes; ++k) sum.lane[k] += other.lane[k];
        }
        V* const to = reinterpret_cast<V*>(sums_of_reference + (m0 + warp) * s.depth);
        if (!first) {
          const V before = *to;
#pragma unroll
          for (int k = 0; k < T::kLanes; ++k) sum.lane[k] = before.lane[k] + sum.lane[k];
        }
        *to = sum;
      }
    }
    A* const to = s.query_sums + ((reference_split * entries + entry) * s.queries + n0 + warp * T::kSide) * s.depth +
                  d0 + lane * T::kLanes;
#pragma unroll
    for (int i = 0; i < T::kSide; ++i)
      if (n0 + warp * T::kSide + i < s.queries) *reinterpret_cast<V*>(to + i * s.depth) = sums[i];
  }
}

// The sum of all splits' partial sums of one place; size: that of a split.
template <class A>
__device__ __forceinline__ A reduce_splits(const A* sums, int64_t splits, int64_t size) {
  A sum = sums[0];
  for (int64_t split = 1; split < splits; ++split) sum += sums[split * size];
  return sum;
}

}  // namespace
}  // namespace dissim
