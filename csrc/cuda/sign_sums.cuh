// The two sign sums of the gradients (E2),
//
//   A[n, d] = sum_m g[n, m] sgn(q[n, d] - r[m, d])      "query sums"
//   B[m, d] = sum_n g[n, m] sgn(q[n, d] - r[m, d])      "reference sums"
//
// with every sign computed once for both. This is the general kernel: it works for all numbers and both accumulator
// dtypes. sign_keys.cuh and sparse_gradient.cuh are faster where they apply; PathFlags says which kernel does the work.
//
// A block owns kDims dimensions (16 bytes per lane), one split of the queries and one split of the references:
//
//   for each tile of kQueries queries of the split:          warp w holds kWarpQueries of them and their sums
//       for each kReferences references of the split:        in shared memory, with their upstream gradients g
//           for each reference m:
//               for each query n of the warp:
//                   sign = sgn(q[n] - r[m])
//                   query_sums[n] += g[n, m] * sign          registers
//                   partial       += g[n, m] * sign          registers
//               warp_sums[m][warp] = partial                 shared memory
//           reference_sums[m] (+)= sum over warps            global memory; warp w does reference w
//       store query_sums
//
// No two blocks write to the same number: every split of one side has its own partial sums of the other side's rows.
// reduce_splits adds them up in a fixed order.
#pragma once

#include "batch.cuh"

namespace dissim {
namespace {

template <class A>
struct SignTile {
  static constexpr int kLaneDims = AlignedVector<A>::kSize, kDims = kWarp * kLaneDims;
  static constexpr int kWarpQueries = sizeof(A) == 4 ? 16 : 8;
  static constexpr int kQueries = kWarps * kWarpQueries, kReferences = kWarps;  // of a block at a time
  static constexpr int kSharedBytes = kReferences * (kQueries + kDims + kWarps * kDims) * int(sizeof(A));
};

// The rows in the accumulator dtype, padded with zeros to whole tiles of dimensions, and the sums; all in the
// workspace.
template <class A>
struct SignSums {
  int64_t queries, references, padded_dim;
  int64_t query_splits, reference_splits;
  int64_t query_tiles, reference_tiles;  // per split
  A *query, *reference;  // [batch, rows, padded_dim]
  A *query_sums, *reference_sums;  // [splits of the other side, batch, heads, rows, padded_dim]
};

// Which kernel computes the sums. Kernels set the flags on the device, because the choice depends on the values.
struct PathFlags {
  int has_no_keys;  // not 0: a value has no key (sign_keys.cuh), or the problem does not use keys
  int has_large_grads;  // not 0: an upstream gradient is too large for the kernel with keys
  int is_sparse;  // not 0: few pairs have an upstream gradient (sparse_gradient.cuh)

  __device__ bool use_keys() const { return !is_sparse && !has_no_keys; }
  // The kernel with keys finds large gradients while it runs; its sums are then overwritten.
  __device__ bool use_general() const { return !is_sparse && (has_no_keys | has_large_grads); }
};

// sgn(q - r) by comparison (E3): 0 if they are equal or one is NaN.
template <class A>
__device__ __forceinline__ A sign(A q, A r) {
  return (q > r ? A(1) : A(0)) - (q < r ? A(1) : A(0));
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    to_acc_rows_kernel(Rows rows, int64_t batch, int64_t dim, int64_t padded_dim, Acc<E>* to) {
  const int64_t index = linear_block_id() * kThreads + threadIdx.x, row = index / padded_dim, d = index % padded_dim;
  if (row < batch * rows.rows)
    to[index] = d < dim ? load_element<E>(batch_slice<E>(rows, row / rows.rows), row % rows.rows, d) : 0;
}

// `G` is a source of upstream gradients. Its cursor(batch, head) stands at the pair (0, 0) of a matrix; advance(rows,
// columns) moves it; load(columns) returns the gradient of the pair that many columns further. kUnroll is the number of
// loads that a thread may have in flight. both_sides: false computes the query sums alone.
template <class G, bool both_sides>
__global__ void __launch_bounds__(kThreads, 1)
    sign_sums_kernel(SignSums<typename G::Acc> s, G g, int64_t heads, int64_t batches, const PathFlags* path) {
  using A = typename G::Acc;
  using T = SignTile<A>;
  using V = AlignedVector<A>;
  if (!path->use_general()) return;
  DISSIM_DYNAMIC_SHARED(A, shared);
  A* const tile_grads = shared;  // [kReferences][kQueries]
  A* const tile_references = tile_grads + T::kReferences * T::kQueries;  // [kReferences][kDims]
  A* const warp_sums = tile_references + T::kReferences * T::kDims;  // [kReferences][kWarps][kDims]

  // From the fastest to the slowest: tile of dimensions, split of queries, split of references, head, batch entry.
  const int64_t dim_tiles = s.padded_dim / T::kDims;
  int64_t index = linear_block_id();
  const int64_t d0 = index % dim_tiles * T::kDims;
  const int64_t query_split = (index /= dim_tiles) % s.query_splits;
  const int64_t reference_split = (index /= s.query_splits) % s.reference_splits;
  const int64_t head = (index /= s.reference_splits) % heads, batch = index / heads;
  if (batch >= batches) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t matrix = batch * heads + head, matrices = batches * heads;
  const int64_t first_reference = reference_split * s.reference_tiles * T::kReferences;
  const int64_t end_reference = min(s.references, first_reference + s.reference_tiles * T::kReferences);

  // This thread fetches four gradients of one query (two of doubles), and 16 bytes of one reference.
  constexpr int grads_per_thread = T::kReferences * T::kQueries / kThreads;
  const int grad_query = threadIdx.x % T::kQueries, grad_reference = threadIdx.x / T::kQueries * grads_per_thread;
  const A* const reference = s.reference + batch * s.references * s.padded_dim + d0 + lane * T::kLaneDims;
  const A* const query = s.query + batch * s.queries * s.padded_dim + d0 + lane * T::kLaneDims;
  A* const reference_sums =
      s.reference_sums + (query_split * matrices + matrix) * s.references * s.padded_dim + d0 + lane * T::kLaneDims;

#pragma unroll 1
  for (int tile = 0; tile < s.query_tiles; ++tile) {
    const int64_t n0 = (query_split * s.query_tiles + tile) * T::kQueries;
    if (n0 >= s.queries) break;
    const bool first_tile = tile == 0;
    const int64_t warp_query = n0 + warp * T::kWarpQueries;
    V q[T::kWarpQueries], sums[T::kWarpQueries] = {};
#pragma unroll
    for (int i = 0; i < T::kWarpQueries; ++i)
      q[i] = load_vector(query + min(warp_query + i, s.queries - 1) * s.padded_dim);

    A next_grads[grads_per_thread];
    V next_reference;
    auto cursor = g.cursor(batch, head);
    cursor.advance(min(n0 + grad_query, s.queries - 1), first_reference + grad_reference);
    const bool query_exists = n0 + grad_query < s.queries;
    const auto fetch = [&](int64_t m0) {
      const int valid = query_exists ? int(min(end_reference - m0, T::kReferences)) - grad_reference : 0;
#pragma unroll
      for (int i = 0; i < grads_per_thread; ++i) next_grads[i] = i < valid ? cursor.load(i) : A(0);
      cursor.advance(0, T::kReferences);
      next_reference = load_vector(reference + min(m0 + warp, s.references - 1) * s.padded_dim);
    };
    fetch(first_reference);
#pragma unroll 1
    for (int64_t m0 = first_reference; m0 < end_reference; m0 += T::kReferences) {
#pragma unroll
      for (int i = 0; i < grads_per_thread; ++i)
        tile_grads[(grad_reference + i) * T::kQueries + grad_query] = next_grads[i];
      *reinterpret_cast<V*>(tile_references + warp * T::kDims + lane * T::kLaneDims) = next_reference;
      __syncthreads();
      if (m0 + T::kReferences < end_reference) fetch(m0 + T::kReferences);
#pragma unroll 1
      for (int m = 0; m < T::kReferences; ++m) {
        const V r = load_vector(tile_references + m * T::kDims + lane * T::kLaneDims);
        V partial = {};
#pragma unroll
        for (int i = 0; i < T::kWarpQueries; i += V::kSize) {
          const V grads = load_vector(tile_grads + m * T::kQueries + warp * T::kWarpQueries + i);
#pragma unroll
          for (int j = 0; j < V::kSize; ++j)
#pragma unroll
            for (int k = 0; k < T::kLaneDims; ++k) {
              const A sgn = sign(q[i + j].val[k], r.val[k]);
              sums[i + j].val[k] += grads.val[j] * sgn;
              if (both_sides) partial.val[k] += grads.val[j] * sgn;
            }
        }
        if (both_sides)
          *reinterpret_cast<V*>(warp_sums + (m * kWarps + warp) * T::kDims + lane * T::kLaneDims) = partial;
      }
      __syncthreads();
      if (both_sides && m0 + warp < end_reference) {
        V sum = load_vector(warp_sums + warp * kWarps * T::kDims + lane * T::kLaneDims);
#pragma unroll
        for (int i = 1; i < kWarps; ++i) {
          const V other = load_vector(warp_sums + (warp * kWarps + i) * T::kDims + lane * T::kLaneDims);
#pragma unroll
          for (int k = 0; k < T::kLaneDims; ++k) sum.val[k] += other.val[k];
        }
        V* const to = reinterpret_cast<V*>(reference_sums + (m0 + warp) * s.padded_dim);
        if (!first_tile) {
          const V before = *to;
#pragma unroll
          for (int k = 0; k < T::kLaneDims; ++k) sum.val[k] = before.val[k] + sum.val[k];
        }
        *to = sum;
      }
    }
    A* const query_sums = s.query_sums +
                          ((reference_split * matrices + matrix) * s.queries + warp_query) * s.padded_dim + d0 +
                          lane * T::kLaneDims;
#pragma unroll
    for (int i = 0; i < T::kWarpQueries; ++i)
      if (warp_query + i < s.queries) *reinterpret_cast<V*>(query_sums + i * s.padded_dim) = sums[i];
  }
}

// The sum of one number's partial sums; `size` is the number of elements of a split.
template <class A>
__device__ __forceinline__ A reduce_splits(const A* partial_sums, int64_t splits, int64_t size) {
  A sum = partial_sums[0];
  for (int64_t split = 1; split < splits; ++split) sum += partial_sums[split * size];
  return sum;
}

}  // namespace
}  // namespace dissim
