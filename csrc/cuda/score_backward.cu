// score_backward: E2. Both sides' sign sums (sign_keys.cuh, gradient.cuh), from them the gradients of the rows and,
// free, of the weights; where infinities cancel in the latter, the terms themselves are summed.
#include "sign_keys.cuh"
#include "launchers.h"

namespace dissim {
namespace {

constexpr int64_t kBlocks = 264;  // wanted in a grid: two for each multiprocessor of the largest devices
constexpr int64_t kReferenceTiles = 8;  // that a share has at least

// grad[b, row, d] = factor sum_h weight[h, d] sums[b, h, row, d].
template <class E>
__global__ void __launch_bounds__(kThreads)
    rows_gradient_kernel(const Wide<E>* sums, int64_t shares, int64_t rows, int64_t depth, Wide<E> factor,
                         ScoreBackward p, E* grad) {
  using A = Wide<E>;
  const int64_t index = task_of_block() * kThreads + threadIdx.x;
  if (index >= p.batch * rows * p.dim) return;
  const int64_t d = index % p.dim, row = index / p.dim % rows, batch = index / p.dim / rows;
  A sum = 0;
  for (int64_t head = 0; head < p.heads; ++head)
    sum += static_cast<const A*>(p.weight)[head * p.dim + d] *
           sum_of_shares(sums + ((batch * p.heads + head) * rows + row) * depth + d, shares,
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
  const int64_t tiles = blocks_of(p.dim, kWarp), head = blockIdx.x / tiles,
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
          (double(q[n * s.depth]) - centre) * double(sum_of_shares(s.query_sums + (entry * s.queries + n) * s.depth + d,
                                                                   s.reference_shares, entries * s.queries * s.depth));
    for (int64_t m = warp; m < s.references; m += kWarps)
      sum -= (double(r[m * s.depth]) - centre) *
             double(sum_of_shares(s.reference_sums + (entry * s.references + m) * s.depth + d, s.query_shares,
                                  entries * s.references * s.depth));
    total += sum_of_warps(sum, of_warps);
  }
  if (warp == 0 && d < p.dim) static_cast<A*>(p.grad_weight)[head * p.dim + d] = A(total);
}

// Sums the terms themselves where the sums above are not finite; elsewhere a block is done at once.
template <class E>
__global__ void __launch_bounds__(kThreads) weight_terms_kernel(SignSums<Wide<E>> s, ScoreBackward p) {
  using A = Wide<E>;
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
      const E* const grad = static_cast<const E*>(p.grad) + batch * p.grad_batch_stride + head * p.grad_head_stride +
                            n * p.grad_row_stride;
      const A q = s.query[(batch * s.queries + n) * s.depth + d];
      A sum = 0;
      for (int64_t m = 0; m < s.references; ++m)
        sum += widen(grad[m * p.grad_column_stride]) * fabs(q - s.reference[(batch * s.references + m) * s.depth + d]);
      total += sum;
    }
  of_threads[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x) return;
  total = 0;
  for (int i = 0; i < kThreads; ++i) total += of_threads[i];
  gradient = total;
}

// Which sums are asked for. Those of the references alone are had with the sides changed over.
struct Needs {
  bool query, reference;
  explicit Needs(const ScoreBackward& p)
      : query(p.grad_query || p.grad_weight), reference(p.grad_reference || p.grad_weight) {}
  bool swapped() const { return !query; }
};

// Lays sums and rows out in the workspace; `bytes` is what they take.
template <class A>
SignSums<A> sign_sums(const ScoreBackward& p, void* workspace, int64_t& bytes) {
  using T = SignTile<A>;
  const Needs needs(p);
  SignSums<A> s = {};
  s.queries = needs.swapped() ? p.reference.rows : p.query.rows;
  s.references = needs.swapped() ? p.query.rows : p.reference.rows;
  s.depth = blocks_of(p.dim, T::kDims) * T::kDims;
  // As many shares as fill the device; of the sides' so that the partial sums take the least room.
  const int64_t entries = p.batch * p.heads, wanted = blocks_of(kBlocks, most(1, entries * (s.depth / T::kDims)));
  const int64_t query_tiles = blocks_of(s.queries, T::kQueries),
                reference_tiles = blocks_of(s.references, T::kReferences);
  int64_t shares = 1;
  while (shares < query_tiles && shares * shares * s.references < wanted * s.queries) ++shares;
  s.query_tiles = blocks_of(query_tiles, shares);
  s.query_shares = blocks_of(query_tiles, s.query_tiles);
  s.reference_tiles = most(kReferenceTiles, blocks_of(reference_tiles, blocks_of(wanted, s.query_shares)));
  s.reference_shares = blocks_of(reference_tiles, s.reference_tiles);
  bytes = 0;
  const auto take = [&](int64_t count) {
    A* const place = static_cast<A*>(workspace) + bytes / int64_t(sizeof(A));
    bytes += count * int64_t(sizeof(A));
    return place;
  };
  s.query = take(p.batch * s.queries * s.depth);
  s.reference = take(p.batch * s.references * s.depth);
  s.query_sums = take(s.reference_shares * entries * s.queries * s.depth);
  s.reference_sums = take(needs.query && needs.reference ? s.query_shares * entries * s.references * s.depth : 0);
  return s;
}

// The same for keys, behind the sums.
SignKeys sign_keys(const ScoreBackward& p, const SignSums<float>& s, void* workspace, int64_t& bytes) {
  const auto take = [&](auto*& place, int64_t count) {
    place = reinterpret_cast<std::remove_reference_t<decltype(place)>>(static_cast<char*>(workspace) + bytes);
    bytes += blocks_of(count * 4, 16) * 16;
  };
  SignKeys keys;
  take(keys.unfit, 2);
  take(keys.query, p.batch * s.queries * s.depth);
  take(keys.reference, p.batch * s.references * s.depth);
  take(keys.biases, s.query_shares * p.batch * p.heads * (s.depth / KeyTile::kDims) * s.references);
  return keys;
}

// The sums of both sides by keys; returns whether they are still wanted.
template <class E>
const int* launch_sign_keys(const ScoreBackward& p, const SignSums<float>& s, const Upstream<E>& g, Grid grid,
                            void* workspace, int64_t bytes, Stream stream) {
  const SignKeys keys = sign_keys(p, s, workspace, bytes);
  const auto rows = [&](const float* values, int64_t count, bool of_query, int* to) {
    launch(row_keys_kernel, grid_of(blocks_of(count, kThreads)), 0, stream, values, count, of_query, to, keys.unfit);
  };
  launch(clear_keys_kernel, Grid{1, 1}, 0, stream, keys);
  rows(s.query, p.batch * s.queries * s.depth, true, keys.query);
  rows(s.reference, p.batch * s.references * s.depth, false, keys.reference);
  launch(sign_keys_kernel<E>, grid, KeyTile::kSharedBytes, stream, s, keys, g, p.grad_batch_stride, p.grad_head_stride,
         p.heads, p.batch);
  return keys.unfit;
}

template <class E>
void launch_score_backward_as(const ScoreBackward& p, void* workspace, Stream stream) {
  using A = Wide<E>;
  using T = SignTile<A>;
  const Needs needs(p);
  if (!needs.query && !needs.reference) return;
  int64_t bytes;
  const SignSums<A> s = sign_sums<A>(p, workspace, bytes);
  const Rows &query = needs.swapped() ? p.reference : p.query, &reference = needs.swapped() ? p.query : p.reference;
  const auto threads = [](int64_t count) { return grid_of(blocks_of(count, kThreads)); };
  launch(widen_rows_kernel<E>, threads(p.batch * s.queries * s.depth), 0, stream, query, p.batch, p.dim, s.depth,
         s.query);
  launch(widen_rows_kernel<E>, threads(p.batch * s.references * s.depth), 0, stream, reference, p.batch, p.dim, s.depth,
         s.reference);

  Upstream<E> g = {static_cast<const E*>(p.grad), p.grad_row_stride, p.grad_column_stride};
  if (needs.swapped()) g = {g.data, p.grad_column_stride, p.grad_row_stride};
  const Grid grid = grid_of(p.batch * p.heads * s.query_shares * s.reference_shares * (s.depth / T::kDims));
  const int* wanted = nullptr;
  if constexpr (sizeof(A) == 4)
    if (needs.query && needs.reference) wanted = launch_sign_keys(p, s, g, grid, workspace, bytes, stream);
  const auto kernel = needs.query && needs.reference ? sign_sums_kernel<E, true> : sign_sums_kernel<E, false>;
  launch(kernel, grid, T::kSharedBytes, stream, s, g, p.grad_batch_stride, p.grad_head_stride, p.heads, p.batch,
         wanted);

  const auto rows_gradient = [&](void* grad, const A* sums, int64_t shares, int64_t rows, A factor) {
    if (grad && p.batch * rows * p.dim)
      launch(rows_gradient_kernel<E>, threads(p.batch * rows * p.dim), 0, stream, sums, shares, rows, s.depth, factor,
             p, static_cast<E*>(grad));
  };
  rows_gradient(p.grad_query, s.query_sums, s.reference_shares, p.query.rows, A(1));
  if (needs.swapped()) {  // the signs are those of r - q, which is -(q - r)
    rows_gradient(p.grad_reference, s.query_sums, s.reference_shares, p.reference.rows, A(1));
  } else {
    rows_gradient(p.grad_reference, s.reference_sums, s.query_shares, p.reference.rows, A(-1));
  }
  if (!p.grad_weight) return;
  launch(weight_gradient_kernel<A>, grid_of(p.heads * blocks_of(p.dim, kWarp)), 0, stream, s, p);
  launch(weight_terms_kernel<E>, grid_of(p.heads * p.dim), 0, stream, s, p);
}

}  // namespace

int64_t score_backward_workspace(const ScoreBackward& p) {
  int64_t bytes;
  if (p.dtype == Dtype::float64) {
    sign_sums<double>(p, nullptr, bytes);
  } else {
    const SignSums<float> s = sign_sums<float>(p, nullptr, bytes);
    const Needs needs(p);
    if (needs.query && needs.reference) sign_keys(p, s, nullptr, bytes);
  }
  return bytes;
}

void launch_score_backward(const ScoreBackward& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return launch_score_backward_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_score_backward_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_score_backward_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_score_backward_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
