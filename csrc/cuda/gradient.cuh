// The gradients of E2 from any source of upstream gradients, for score_backward and hinge_backward: both sides' sums of
// signs, from them the gradients of the rows and, free, of the weights; where infinities cancel in the latter, the
// terms themselves are summed.
#pragma once

#include "sign_keys.cuh"

namespace dissim {
namespace {

#ifdef DISSIM_CUDA_ON_HOST
constexpr int64_t kBlocks = 8;  // so that a share has many rows in small tests too
#else
constexpr int64_t kBlocks = 264;  // wanted in a grid: two for each multiprocessor of the largest devices
#endif
constexpr int64_t kReferenceTiles = 8;  // that a share has at least

// grad[b, row, d] = factor sum_h weight[h, d] sums[b, h, row, d].
template <class E>
__global__ void __launch_bounds__(kThreads)
    rows_gradient_kernel(const Acc<E>* sums, int64_t splits, int64_t rows, int64_t depth, Acc<E> factor,
                         ScoreBackward p, E* grad) {
  using A = Acc<E>;
  const int64_t index = task_of_block() * kThreads + threadIdx.x;
  if (index >= p.batch * rows * p.dim) return;
  const int64_t d = index % p.dim, row = index / p.dim % rows, batch = index / p.dim / rows;
  A sum = 0;
  for (int64_t head = 0; head < p.heads; ++head)
    sum += static_cast<const A*>(p.weight)[head * p.dim + d] *
           reduce_splits(sums + ((batch * p.heads + head) * rows + row) * depth + d, splits,
                         p.batch * p.heads * rows * depth);
  grad[index] = narrow<E>(factor * sum);
}

// The sum of what the block's warps bring for their common 32 lanes, in a fixed order; for every warp.
__device__ __forceinline__ double sum_of_warps(double x, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * kWarp + threadIdx.x % kWarp];
  return sum;
}

// grad_weight[h, d] = sum_b (sum_n (q - c) A - sum_m (r - c) B), c the mean of r: a block for 32 dimensions of a head.
template <class A>
__global__ void __launch_bounds__(kThreads, 2) weight_gradient_kernel(SignSums<A> s, ScoreBackward p) {
  __shared__ double of_warps[kThreads];
  const int warp = threadIdx.x / kWarp;
  const int64_t tiles = ceil_div(p.dim, kWarp), head = blockIdx.x / tiles,
                d = blockIdx.x % tiles * kWarp + threadIdx.x % kWarp;
  const int64_t entries = p.batch * p.heads;  // d stays below depth
  double total = 0;
#pragma unroll 1
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const A *const q = s.query + batch * s.queries * s.depth + d, *const r =
                                                                      s.reference + batch * s.references * s.depth + d;
    const int64_t entry = batch * p.heads + head;
    double centre = 0, sum = 0;
    for (int64_t m = warp; m < s.references; m += kWarps) centre += double(r[m * s.depth]);
    centre = sum_of_warps(centre, of_warps) / double(s.references);
    if (!(centre - centre == 0)) centre = 0;
    for (int64_t n = warp; n < s.queries; n += kWarps)
      sum +=
          (double(q[n * s.depth]) - centre) * double(reduce_splits(s.query_sums + (entry * s.queries + n) * s.depth + d,
                                                                   s.reference_splits, entries * s.queries * s.depth));
    for (int64_t m = warp; m < s.references; m += kWarps)
      sum -= (double(r[m * s.depth]) - centre) *
             double(reduce_splits(s.reference_sums + (entry * s.references + m) * s.depth + d, s.query_splits,
                                  entries * s.references * s.depth));
    total += sum_of_warps(sum, of_warps);
  }
  if (warp == 0 && d < p.dim) static_cast<A*>(p.grad_weight)[head * p.dim + d] = A(total);
}

// Sums the terms themselves where the sums above are not finite; elsewhere a block is done at once.
template <class G>
__global__ void __launch_bounds__(kThreads) weight_terms_kernel(SignSums<typename G::Acc> s, ScoreBackward p, G g) {
  using A = typename G::Acc;
  __shared__ A of_threads[kThreads];
  const int64_t index = task_of_block(), head = index / p.dim, d = index % p.dim;
  if (index >= p.heads * p.dim) return;
  A& gradient = static_cast<A*>(p.grad_weight)[index];
  const A found = gradient;
  __syncthreads();
  if (found - found == 0) return;
  A total = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch)
    for (int64_t n = threadIdx.x; n < s.queries; n += kThreads) {
      auto grad = g.from(batch, head);
      grad.move(n, 0);
      const A q = s.query[(batch * s.queries + n) * s.depth + d];
      A sum = 0;
      for (int64_t m = 0; m < s.references; ++m, grad.move(0, 1))
        sum += grad.value(0) * fabs(q - s.reference[(batch * s.references + m) * s.depth + d]);
      total += sum;
    }
  of_threads[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x) return;
  total = 0;
  for (int i = 0; i < kThreads; ++i) total += of_threads[i];
  gradient = total;
}

__global__ void __launch_bounds__(kThreads) begin_route_kernel(Route* route, bool keys) {
  if (threadIdx.x == 0) *route = {!keys, 0, 0};
}

// A call: begin(), the sums by add() or another way, finish(). Rows lie widened in the workspace, and so do the sums.
// The sums of the references alone are had with the sides changed over, if the source of gradients can swap them.
template <class E>
class Gradient {
 public:
  using A = Acc<E>;
  using T = SignTile<A>;

  Gradient(const ScoreBackward& p, bool can_swap, void* workspace, Stream stream)
      : p_(p), can_swap_(can_swap), workspace_(workspace), stream_(stream) {
    s.queries = swapped() ? p.reference.rows : p.query.rows;
    s.references = swapped() ? p.query.rows : p.reference.rows;
    s.depth = ceil_div(p.dim, T::kDims) * T::kDims;
    // As many splits as fill the device; of the sides' so that the partial sums take the least room.
    const int64_t entries = p.batch * p.heads, wanted = ceil_div(kBlocks, max(1, entries * (s.depth / T::kDims)));
    const int64_t query_tiles = ceil_div(s.queries, T::kQueries),
                  reference_tiles = ceil_div(s.references, T::kReferences);
    int64_t splits = 1;
    while (splits < query_tiles && splits * splits * s.references < wanted * s.queries) ++splits;
    s.query_tiles = ceil_div(query_tiles, splits);
    s.query_splits = ceil_div(query_tiles, s.query_tiles);
    s.reference_tiles = max(kReferenceTiles, ceil_div(reference_tiles, ceil_div(wanted, s.query_splits)));
    s.reference_splits = ceil_div(reference_tiles, s.reference_tiles);
    route = take<Route>(1);
    s.query = take<A>(p.batch * s.queries * s.depth);
    s.reference = take<A>(p.batch * s.references * s.depth);
    s.query_sums = take<A>(s.reference_splits * entries * s.queries * s.depth);
    s.reference_sums = take<A>(both() ? s.query_splits * entries * s.references * s.depth : 0);
    if (!by_keys()) return;
    keys_.route = route;
    keys_.query = take<int>(p.batch * s.queries * s.depth);
    keys_.reference = take<int>(p.batch * s.references * s.depth);
    keys_.biases = take<float>(s.query_splits * entries * (s.depth / T::kDims) * s.references);
  }

  // More of the workspace, of which bytes() are taken.
  template <class X>
  X* take(int64_t count) {
    X* const place = reinterpret_cast<X*>(static_cast<char*>(workspace_) + bytes_);
    bytes_ += ceil_div(count * int64_t(sizeof(X)), 16) * 16;
    return place;
  }
  int64_t bytes() const { return bytes_; }
  bool swapped() const { return can_swap_ && !p_.grad_query && !p_.grad_weight; }
  bool both() const { return !swapped() && (p_.grad_reference || p_.grad_weight); }
  bool wanted() const { return p_.grad_query || p_.grad_reference || p_.grad_weight; }

  void begin() const {
    launch("begin_route_kernel", begin_route_kernel, Grid{1, 1}, 0, stream_, route, by_keys());
    if (!wanted()) return;
    to_acc(swapped() ? p_.reference : p_.query, s.queries, s.query);
    to_acc(swapped() ? p_.query : p_.reference, s.references, s.reference);
  }

  // The sums of both sides, or of s.query alone: by keys, and by the general kernel where there are none.
  template <class G>
  void add(const G& g) const {
    const Grid grid = grid_of(p_.batch * p_.heads * s.query_splits * s.reference_splits * (s.depth / T::kDims));
    if constexpr (sizeof(A) == 4)
      if (by_keys()) {
        make_keys(s.query, p_.batch * s.queries * s.depth, true, keys_.query);
        make_keys(s.reference, p_.batch * s.references * s.depth, false, keys_.reference);
        launch("sign_keys_kernel", sign_keys_kernel<G>, grid, KeyTile::kSharedBytes, stream_, s, keys_, g, p_.heads,
               p_.batch);
      }
    const auto kernel = both() ? sign_sums_kernel<G, true> : sign_sums_kernel<G, false>;
    launch("sign_sums_kernel", kernel, grid, T::kSharedBytes, stream_, s, g, p_.heads, p_.batch, route);
  }

  // Writes the gradients, all sums being there.
  template <class G>
  void finish(const G& g) const {
    write(p_.grad_query, s.query_sums, s.reference_splits, p_.query.rows, 1);
    if (swapped()) {  // the signs are those of r - q, which is -(q - r)
      write(p_.grad_reference, s.query_sums, s.reference_splits, p_.reference.rows, 1);
    } else {
      write(p_.grad_reference, s.reference_sums, s.query_splits, p_.reference.rows, -1);
    }
    if (!p_.grad_weight) return;
    launch("weight_gradient_kernel", weight_gradient_kernel<A>, grid_of(p_.heads * ceil_div(p_.dim, kWarp)), 0, stream_,
           s, p_);
    launch("weight_terms_kernel", weight_terms_kernel<G>, grid_of(p_.heads * p_.dim), 0, stream_, s, p_, g);
  }

  SignSums<A> s = {};
  Route* route;

 private:
  // Of few rows nearly all may tie, where keys round more than they must.
  bool by_keys() const { return sizeof(A) == 4 && both() && min(s.queries, s.references) >= KeyTile::kSide; }
  static Grid threads(int64_t count) { return grid_of(ceil_div(count, kThreads)); }
  void to_acc(const Rows& rows, int64_t count, A* to) const {
    launch("to_acc_rows_kernel", to_acc_rows_kernel<E>, threads(p_.batch * count * s.depth), 0, stream_, rows, p_.batch,
           p_.dim, s.depth, to);
  }
  void make_keys(const float* values, int64_t count, bool of_query, int* to) const {
    launch("row_keys_kernel", row_keys_kernel, threads(count), 0, stream_, values, count, of_query, to, route);
  }
  void write(void* grad, const A* sums, int64_t splits, int64_t rows, A factor) const {
    if (grad && p_.batch * rows * p_.dim)
      launch("rows_gradient_kernel", rows_gradient_kernel<E>, threads(p_.batch * rows * p_.dim), 0, stream_, sums,
             splits, rows, s.depth, factor, p_, static_cast<E*>(grad));
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
