// listed_scores: the scores of listed pairs, a warp for each query and a thread for each of its pairs. They are
// bit-identical to the scores of a tile, which `rank` compares them with.
#include "exact_score.cuh"
#include "launchers.h"

namespace dissim {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads) listed_scores_kernel(ListedScores p) {
  using A = Acc<E>;
  const int64_t n = linear_block_id() * kWarps + threadIdx.x / kWarp;
  if (n >= p.query.rows) return;
  const int64_t end = min(p.offsets[n + 1], p.pairs);  // the host has not checked them
#pragma unroll 1
  for (int64_t i = max(p.offsets[n], int64_t(0)) + threadIdx.x % kWarp; i < end; i += kWarp) {
    const int64_t m = p.indices[i];
    const bool exists = m >= 0 && m < p.reference.rows;
    static_cast<A*>(p.scores)[i] = exists ? exact_score<E>(p, n, m) : A(NAN);
  }
}

}  // namespace

int64_t listed_scores_workspace(const ListedScores&) { return 0; }

void launch_listed_scores(const ListedScores& p, void*, Stream stream) {
  const Grid grid = grid_for(ceil_div(p.query.rows, kWarps));
  if (p.query.rows == 0 || p.pairs == 0) return;
  switch (p.dtype) {
    case Dtype::float16: return launch("listed_scores_kernel", listed_scores_kernel<__half>, grid, 0, stream, p);
    case Dtype::bfloat16:
      return launch("listed_scores_kernel", listed_scores_kernel<__nv_bfloat16>, grid, 0, stream, p);
    case Dtype::float32: return launch("listed_scores_kernel", listed_scores_kernel<float>, grid, 0, stream, p);
    case Dtype::float64: return launch("listed_scores_kernel", listed_scores_kernel<double>, grid, 0, stream, p);
  }
}

}  // namespace dissim
