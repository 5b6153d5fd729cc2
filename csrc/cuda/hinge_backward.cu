// hinge_backward: E2's sums of signs where a pair is active. A block owns rows of one side and dimensions, and goes
// over the tiles of the other side. A tile without an active pair costs a look at its bits, and of others only those
// rows cost that have an active pair with a warp's own (E12). Each side goes on its own, so a sum has one owner and one
// order.
#include "launchers.h"
#include "tile.cuh"

namespace dissim {
namespace {

constexpr int kOwn = 64, kDims = 64, kOther = 32, kEach = 4;  // rows and dimensions of a block, others in shared memory

constexpr int64_t kCentred = 256;  // references whose mean the gradient of the weights is taken about

template <class A>
struct alignas(16) Four {
  A lane[kEach];
};

// Whether a look at four gradients shows that all are 0; of doubles it would cost more than it saves.
__device__ __forceinline__ bool are_zero(const Four<float>& four) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) bits |= __float_as_uint(four.lane[i]);
  return bits == 0;
}
__device__ __forceinline__ bool are_zero(const Four<double>&) { return false; }

// Sums of each block over its rows, for the gradients of weights [tiles][dim] and bias [query tiles].
template <class A>
struct Scratch {
  int64_t query_tiles, reference_tiles;
  A *of_query, *of_reference, *of_bias;
};

template <class A>
Scratch<A> scratch_of(const HingeBackward& p, void* workspace) {
  Scratch<A> s{blocks_of(p.query.rows, kOwn), blocks_of(p.reference.rows, kOwn), static_cast<A*>(workspace)};
  s.of_reference = s.of_query + s.query_tiles * p.dim;
  s.of_bias = s.of_reference + s.reference_tiles * p.dim;
  return s;
}

template <class A>
int64_t bytes_of(const HingeBackward& p) {
  const Scratch<A> s = scratch_of<A>(p, nullptr);
  return reinterpret_cast<intptr_t>(s.of_bias + s.query_tiles);
}

// The upstream gradient of a pair's score.
template <class A>
__device__ __forceinline__ A pair_gradient(const HingeBackward& p, int64_t n, int64_t m) {
  if (n >= p.query.rows || m >= p.reference.rows) return 0;
  if (!(p.active[n * blocks_of(p.reference.rows, 8) + m / 8] >> m % 8 & 1)) return 0;
  return p.query_labels[n] == p.reference_labels[m] ? -static_cast<const A*>(p.grad_positive)[n]
                                                    : static_cast<const A*>(p.grad_negative)[n];
}

template <class E>
__device__ __forceinline__ Wide<E> element(const Rows& rows, int64_t row, int64_t d, int64_t dim) {
  if (row >= rows.rows || d >= dim) return 0;
  return widen(static_cast<const E*>(rows.data)[row * rows.row_stride + d * rows.dim_stride]);
}

// The mean of the first references, or 0 where it is not finite (E2).
template <class E>
__device__ __forceinline__ Wide<E> centre_of(const HingeBackward& p, int64_t d) {
  const int64_t count = least(p.reference.rows, kCentred);
  Wide<E> sum = 0;
  for (int64_t m = 0; m < count; ++m) sum += element<E>(p.reference, m, d, p.dim);
  sum /= Wide<E>(count);
  return sum - sum == 0 ? sum : Wide<E>(0);
}

// For the rows of a side: sums over the other side of a pair's gradient and the sign of own - other, times the weight.
template <class E, bool of_query>
__global__ void __launch_bounds__(kThreads, 1) hinge_backward_kernel(HingeBackward p, Scratch<Wide<E>> s) {
  using A = Wide<E>;
  __shared__ Four<A> others[kOther][kDims / kEach + 1], gradients[kOther][kOwn / kEach + 1];
  __shared__ A of_rows[kOwn / kEach][kDims];
  __shared__ int found[kWarps];
  const Rows &own = of_query ? p.query : p.reference, &other = of_query ? p.reference : p.query;
  const int t = threadIdx.x, x = t % kGrid, y = t / kGrid;
  const int64_t row0 = int64_t(blockIdx.x) * kOwn, d0 = int64_t(blockIdx.y) * kDims;

  A mine[kEach][kEach], sums[kEach][kEach] = {}, of_bias = 0;
  for (int i = 0; i < kEach; ++i)
    for (int j = 0; j < kEach; ++j) mine[i][j] = element<E>(own, row0 + y * kEach + i, d0 + x * kEach + j, p.dim);
#pragma unroll 1
  for (int64_t other0 = 0; other0 < other.rows; other0 += kOther) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kOther * kOwn / kThreads; ++i) {
      const int at = t + i * kThreads, a = of_query ? at / kOther : at % kOwn, b = of_query ? at % kOther : at / kOwn;
      const A g = of_query ? pair_gradient<A>(p, row0 + a, other0 + b) : pair_gradient<A>(p, other0 + b, row0 + a);
      gradients[b][a / kEach].lane[a % kEach] = g;
      of_bias += g;
      any |= g != 0;  // NaN is not 0
    }
    any = __any_sync(kAll, any);
    if (t % kWarp == 0) found[t / kWarp] = any;
    __syncthreads();
    any = false;
    for (int warp = 0; warp < kWarps; ++warp) any |= found[warp] != 0;
    if (any) {
#pragma unroll
      for (int i = 0; i < kOther * kDims / kThreads; ++i) {
        const int at = t + i * kThreads, d = at % kDims;
        others[at / kDims][d / kEach].lane[d % kEach] = element<E>(other, other0 + at / kDims, d0 + d, p.dim);
      }
      __syncthreads();
#pragma unroll(sizeof(A) == 4 ? 2 : 1)  // two of doubles spill
      for (int b = 0; b < kOther; ++b) {
        const Four<A> g = gradients[b][y];
        if (are_zero(g)) continue;
        const Four<A> its = others[b][x];
#pragma unroll
        for (int i = 0; i < kEach; ++i)
#pragma unroll
          for (int j = 0; j < kEach; ++j)
            sums[i][j] += g.lane[i] * (A(mine[i][j] > its.lane[j]) - A(mine[i][j] < its.lane[j]));
      }
    }
    __syncthreads();
  }

  E* const out = static_cast<E*>(of_query ? p.grad_query : p.grad_reference);
  const A* const weight = static_cast<const A*>(p.weight);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t d = d0 + x * kEach + j;
    const A centre = p.grad_weight && d < p.dim ? centre_of<E>(p, d) : A(0);
    A of_weight = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t row = row0 + y * kEach + i;
      if (row >= own.rows || d >= p.dim) continue;
      if (out) out[row * p.dim + d] = narrow<E>(weight[d] * sums[i][j]);
      of_weight += (mine[i][j] - centre) * sums[i][j];
    }
    of_rows[y][x * kEach + j] = of_weight;
  }
  __syncthreads();
  if (t < kDims && d0 + t < p.dim) {
    A of_weight = 0;
    for (int i = 0; i < kOwn / kEach; ++i) of_weight += of_rows[i][t];
    (of_query ? s.of_query : s.of_reference)[blockIdx.x * p.dim + d0 + t] = of_weight;
  }
  if (of_query && blockIdx.y == 0) {
    __syncthreads();
    for (int step = kWarp / 2; step; step /= 2) of_bias += __shfl_xor_sync(kAll, of_bias, step);
    if (t % kWarp == 0) of_rows[0][t / kWarp] = of_bias;
    __syncthreads();
    of_bias = 0;
    for (int warp = 0; warp < kWarps; ++warp) of_bias += of_rows[0][warp];
    if (t == 0) s.of_bias[blockIdx.x] = of_bias;
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) hinge_backward_sum_kernel(HingeBackward p, Scratch<A> s) {
  const int64_t d = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (p.grad_weight && d < p.dim) {
    A sum = 0;
    for (int64_t tile = 0; tile < s.query_tiles; ++tile) sum += s.of_query[tile * p.dim + d];
    for (int64_t tile = 0; tile < s.reference_tiles; ++tile) sum += s.of_reference[tile * p.dim + d];
    static_cast<A*>(p.grad_weight)[d] = sum;
  }
  if (p.grad_bias && d == 0) {
    A sum = 0;
    for (int64_t tile = 0; tile < s.query_tiles; ++tile) sum += s.of_bias[tile];
    *static_cast<A*>(p.grad_bias) = sum;
  }
}

template <class E>
void launch_hinge_backward_as(const HingeBackward& p, void* workspace, Stream stream) {
  using A = Wide<E>;
  const Scratch<A> s = scratch_of<A>(p, workspace);
  const unsigned dims = unsigned(blocks_of(p.dim, kDims));
  if (p.grad_query || p.grad_weight || p.grad_bias)
    launch(hinge_backward_kernel<E, true>, Grid{unsigned(s.query_tiles), dims}, 0, stream, p, s);
  if (p.grad_reference || p.grad_weight)
    launch(hinge_backward_kernel<E, false>, Grid{unsigned(s.reference_tiles), dims}, 0, stream, p, s);
  launch(hinge_backward_sum_kernel<A>, Grid{unsigned(blocks_of(p.dim, kThreads)), 1}, 0, stream, p, s);
}

}  // namespace

int64_t hinge_backward_workspace(const HingeBackward& p) {
  return p.dtype == Dtype::float64 ? bytes_of<double>(p) : bytes_of<float>(p);
}

void launch_hinge_backward(const HingeBackward& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return launch_hinge_backward_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_hinge_backward_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_hinge_backward_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_hinge_backward_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
