// The gradients (E2) from any source of upstream gradients; score_backward and hinge_backward share it.
//
//   1. prepare            rows -> accumulator dtype, padded; path flags = their initial values
//   2. sign sums          one of three kernels, chosen on the device by PathFlags:
//                             sparse_gradient.cuh  few pairs have an upstream gradient (hinge only)
//                             sign_keys.cuh        float32, both sides: one instruction per sign
//                             sign_sums.cuh        everything else
//   3. write_gradients    grad_query     =  w * A
//                         grad_reference = -w * B
//                         grad_weight    = sum_n (q - c) A - sum_m (r - c) B     c: mean of the references
//                         where grad_weight is not finite: sum of g |q - r| over all pairs instead
//
// If only grad_reference is needed, the sides are swapped, so that the kernels compute one side's sums.
#pragma once

#include "sign_keys.cuh"

namespace dissim {
namespace {

#ifdef DISSIM_CUDA_ON_HOST
constexpr int64_t kTargetBackwardBlocks = 8;  // small, so that small tests have splits of many rows
#else
constexpr int64_t kTargetBackwardBlocks = 264;  // two blocks per SM of the largest devices
#endif
constexpr int64_t kMinReferenceTiles = 8;  // of a split

// grad[batch, row, d] = factor * sum_head weight[head, d] sums[batch, head, row, d].
template <class E>
__global__ void __launch_bounds__(kThreads)
    rows_gradient_kernel(const Acc<E>* sums, int64_t splits, int64_t rows, int64_t padded_dim, Acc<E> factor,
                         ScoreBackward p, E* grad) {
  using A = Acc<E>;
  const int64_t index = linear_block_id() * kThreads + threadIdx.x;
  if (index >= p.batch * rows * p.dim) return;
  const int64_t d = index % p.dim, row = index / p.dim % rows, batch = index / p.dim / rows;
  A sum = 0;
  for (int64_t head = 0; head < p.heads; ++head)
    sum += static_cast<const A*>(p.weight)[head * p.dim + d] *
           reduce_splits(sums + ((batch * p.heads + head) * rows + row) * padded_dim + d, splits,
                         p.batch * p.heads * rows * padded_dim);
  grad[index] = from_acc<E>(factor * sum);
}

// For each lane l, the sum of x over lane l of all warps, in a fixed order; the result is in every warp.
__device__ __forceinline__ double sum_over_warps(double x, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * kWarp + threadIdx.x % kWarp];
  return sum;
}

// grad_weight[head, d] = sum_batch (sum_n (q - c) A - sum_m (r - c) B) with c the mean of r. A block computes 32
// dimensions of a head: a lane per dimension, and the warps divide the rows.
template <class A>
__global__ void __launch_bounds__(kThreads, 2) weight_gradient_kernel(SignSums<A> s, ScoreBackward p) {
  __shared__ double shared[kThreads];
  const int warp = threadIdx.x / kWarp;
  const int64_t dim_tiles = ceil_div(p.dim, kWarp), head = blockIdx.x / dim_tiles;
  const int64_t d = blockIdx.x % dim_tiles * kWarp + threadIdx.x % kWarp;  // below padded_dim
  const int64_t matrices = p.batch * p.heads;
  double total = 0;
#pragma unroll 1
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const A* const q = s.query + batch * s.queries * s.padded_dim + d;
    const A* const r = s.reference + batch * s.references * s.padded_dim + d;
    const int64_t matrix = batch * p.heads + head;
    const auto query_sum = [&](int64_t n) {
      return double(reduce_splits(s.query_sums + (matrix * s.queries + n) * s.padded_dim + d, s.reference_splits,
                                  matrices * s.queries * s.padded_dim));
    };
    const auto reference_sum = [&](int64_t m) {
      return double(reduce_splits(s.reference_sums + (matrix * s.references + m) * s.padded_dim + d, s.query_splits,
                                  matrices * s.references * s.padded_dim));
    };
    double center = 0, sum = 0;
    for (int64_t m = warp; m < s.references; m += kWarps) center += double(r[m * s.padded_dim]);
    center = sum_over_warps(center, shared) / double(s.references);
    if (!(center - center == 0)) center = 0;  // NaN or infinite
    for (int64_t n = warp; n < s.queries; n += kWarps) sum += (double(q[n * s.padded_dim]) - center) * query_sum(n);
    for (int64_t m = warp; m < s.references; m += kWarps)
      sum -= (double(r[m * s.padded_dim]) - center) * reference_sum(m);
    total += sum_over_warps(sum, shared);
  }
  if (warp == 0 && d < p.dim) static_cast<A*>(p.grad_weight)[head * p.dim + d] = A(total);
}

// Where grad_weight is not finite, infinities may have canceled. Then it becomes the sum of g |q - r| over all pairs. A
// block per weight; it returns at once if the gradient is finite.
template <class G>
__global__ void __launch_bounds__(kThreads)
    fix_nonfinite_weight_grad_kernel(SignSums<typename G::Acc> s, ScoreBackward p, G g) {
  using A = typename G::Acc;
  __shared__ A thread_sums[kThreads];
  const int64_t index = linear_block_id(), head = index / p.dim, d = index % p.dim;
  if (index >= p.heads * p.dim) return;
  A& gradient = static_cast<A*>(p.grad_weight)[index];
  const A from_sums = gradient;
  __syncthreads();
  if (from_sums - from_sums == 0) return;  // finite
  A total = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch)
    for (int64_t n = threadIdx.x; n < s.queries; n += kThreads) {
      auto cursor = g.cursor(batch, head);
      cursor.advance(n, 0);
      const A q = s.query[(batch * s.queries + n) * s.padded_dim + d];
      A sum = 0;
      for (int64_t m = 0; m < s.references; ++m, cursor.advance(0, 1))
        sum += cursor.load(0) * fabs(q - s.reference[(batch * s.references + m) * s.padded_dim + d]);
      total += sum;
    }
  thread_sums[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x) return;
  total = 0;
  for (int i = 0; i < kThreads; ++i) total += thread_sums[i];
  gradient = total;
}

__global__ void __launch_bounds__(kThreads) init_path_flags_kernel(PathFlags* path, bool keys_apply) {
  if (threadIdx.x == 0) *path = {!keys_apply, 0, 0};
}

// Lays out the workspace of a backward call and launches its kernels: prepare(), then the sign sums by
// launch_sign_sums() or another kernel, then write_gradients(). `can_swap`: the source of upstream gradients can
// exchange the sides.
template <class E>
class BackwardLauncher {
 public:
  using A = Acc<E>;
  using T = SignTile<A>;

  BackwardLauncher(const ScoreBackward& p, bool can_swap, void* workspace, Stream stream)
      : p_(p), can_swap_(can_swap), workspace_(workspace), stream_(stream) {
    s.queries = is_swapped() ? p.reference.rows : p.query.rows;
    s.references = is_swapped() ? p.query.rows : p.reference.rows;
    s.padded_dim = ceil_div(p.dim, T::kDims) * T::kDims;
    plan_splits();
    const int64_t matrices = p.batch * p.heads, dim_tiles = s.padded_dim / T::kDims;
    path = take<PathFlags>(1);
    s.query = take<A>(p.batch * s.queries * s.padded_dim);
    s.reference = take<A>(p.batch * s.references * s.padded_dim);
    s.query_sums = take<A>(s.reference_splits * matrices * s.queries * s.padded_dim);
    s.reference_sums = take<A>(both_sides() ? s.query_splits * matrices * s.references * s.padded_dim : 0);
    if (!keys_apply()) return;
    keys_.path = path;
    keys_.query = take<int>(p.batch * s.queries * s.padded_dim);
    keys_.reference = take<int>(p.batch * s.references * s.padded_dim);
    keys_.reference_grad_sums = take<float>(s.query_splits * matrices * dim_tiles * s.references);
  }

  // Reserves `count` values at the end of the workspace; bytes() is the size so far.
  template <class X>
  X* take(int64_t count) {
    X* const begin = reinterpret_cast<X*>(static_cast<char*>(workspace_) + bytes_);
    bytes_ += ceil_div(count * int64_t(sizeof(X)), 16) * 16;
    return begin;
  }
  int64_t bytes() const { return bytes_; }
  bool is_swapped() const { return can_swap_ && !p_.grad_query && !p_.grad_weight; }
  bool both_sides() const { return !is_swapped() && (p_.grad_reference || p_.grad_weight); }
  bool needs_sign_sums() const { return p_.grad_query || p_.grad_reference || p_.grad_weight; }

  void prepare() const {
    launch("init_path_flags_kernel", init_path_flags_kernel, Grid{1, 1}, 0, stream_, path, keys_apply());
    if (!needs_sign_sums()) return;
    convert_rows(is_swapped() ? p_.reference : p_.query, s.queries, s.query);
    convert_rows(is_swapped() ? p_.query : p_.reference, s.references, s.reference);
  }

  // The kernel with keys if it applies, and the general kernel, which returns at once if the flags say so.
  template <class G>
  void launch_sign_sums(const G& g) const {
    const Grid grid = grid_for(p_.batch * p_.heads * s.query_splits * s.reference_splits * (s.padded_dim / T::kDims));
    if constexpr (sizeof(A) == 4)
      if (keys_apply()) {
        compute_keys(s.query, p_.batch * s.queries * s.padded_dim, true, keys_.query);
        compute_keys(s.reference, p_.batch * s.references * s.padded_dim, false, keys_.reference);
        launch("sign_keys_kernel", sign_keys_kernel<G>, grid, KeyTile::kSharedBytes, stream_, s, keys_, g, p_.heads,
               p_.batch);
      }
    const auto kernel = both_sides() ? sign_sums_kernel<G, true> : sign_sums_kernel<G, false>;
    launch("sign_sums_kernel", kernel, grid, T::kSharedBytes, stream_, s, g, p_.heads, p_.batch, path);
  }

  template <class G>
  void write_gradients(const G& g) const {
    write_rows(p_.grad_query, s.query_sums, s.reference_splits, p_.query.rows, 1);
    if (is_swapped()) {  // these signs are those of r - q, so the factor is 1
      write_rows(p_.grad_reference, s.query_sums, s.reference_splits, p_.reference.rows, 1);
    } else {
      write_rows(p_.grad_reference, s.reference_sums, s.query_splits, p_.reference.rows, -1);
    }
    if (!p_.grad_weight) return;
    launch("weight_gradient_kernel", weight_gradient_kernel<A>, grid_for(p_.heads * ceil_div(p_.dim, kWarp)), 0,
           stream_, s, p_);
    launch("fix_nonfinite_weight_grad_kernel", fix_nonfinite_weight_grad_kernel<G>, grid_for(p_.heads * p_.dim), 0,
           stream_, s, p_, g);
  }

  SignSums<A> s = {};
  PathFlags* path;

 private:
  // Enough splits to fill the device. Q query splits and R reference splits need partial sums for Q * references +
  // R * queries rows; this is smallest for a given Q * R if Q / R = queries / references.
  void plan_splits() {
    const int64_t matrices = p_.batch * p_.heads, dim_tiles = s.padded_dim / T::kDims;
    const int64_t target = ceil_div(kTargetBackwardBlocks, max(1, matrices * dim_tiles));
    const int64_t query_tiles = ceil_div(s.queries, T::kQueries);
    const int64_t reference_tiles = ceil_div(s.references, T::kReferences);
    int64_t splits = 1;
    while (splits < query_tiles && splits * splits * s.references < target * s.queries) ++splits;
    s.query_tiles = ceil_div(query_tiles, splits);
    s.query_splits = ceil_div(query_tiles, s.query_tiles);
    s.reference_tiles = max(kMinReferenceTiles, ceil_div(reference_tiles, ceil_div(target, s.query_splits)));
    s.reference_splits = ceil_div(reference_tiles, s.reference_tiles);
  }

  // Among few rows nearly all pairs may tie, and then the sums by keys have larger roundings (sign_keys.cuh).
  bool keys_apply() const {
    return sizeof(A) == 4 && both_sides() && min(s.queries, s.references) >= KeyTile::kWarpQueries;
  }
  static Grid grid_of_threads(int64_t count) { return grid_for(ceil_div(count, kThreads)); }
  void convert_rows(const Rows& rows, int64_t count, A* to) const {
    launch("to_acc_rows_kernel", to_acc_rows_kernel<E>, grid_of_threads(p_.batch * count * s.padded_dim), 0, stream_,
           rows, p_.batch, p_.dim, s.padded_dim, to);
  }
  void compute_keys(const float* values, int64_t count, bool is_query, int* to) const {
    launch("row_keys_kernel", row_keys_kernel, grid_of_threads(count), 0, stream_, values, count, is_query, to, path);
  }
  void write_rows(void* grad, const A* sums, int64_t splits, int64_t rows, A factor) const {
    if (grad && p_.batch * rows * p_.dim)
      launch("rows_gradient_kernel", rows_gradient_kernel<E>, grid_of_threads(p_.batch * rows * p_.dim), 0, stream_,
             sums, splits, rows, s.padded_dim, factor, p_, static_cast<E*>(grad));
  }

  const ScoreBackward p_;
  const bool can_swap_;
  void* const workspace_;
  const Stream stream_;
  int64_t bytes_ = 0;
  SignKeys keys_ = {};
};

}  // namespace
}  // namespace dissim
