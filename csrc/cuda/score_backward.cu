// score_backward: the gradients (E2) from a matrix of upstream gradients (gradient.cuh).
#include "gradient.cuh"
#include "launchers.h"

namespace dissim {
namespace {

// A source of upstream gradients, as sign_sums.cuh describes it: a matrix, or its transpose if the sides are swapped.
template <class E>
struct MatrixGradients {
  using Acc = dissim::Acc<E>;
  static constexpr int kUnroll = 32;
  const E* data;
  int64_t batch_stride, head_stride, row_stride, column_stride;

  struct Cursor {
    const MatrixGradients& g;
    const E* grad;

    __device__ __forceinline__ Acc load(int column) const { return to_acc(grad[column * g.column_stride]); }
    __device__ __forceinline__ void advance(int64_t rows, int64_t columns) {
      grad += rows * g.row_stride + columns * g.column_stride;
    }
  };
  __device__ __forceinline__ Cursor cursor(int64_t batch, int64_t head) const {
    return {*this, data + batch * batch_stride + head * head_stride};
  }
};

template <class E>
void launch_score_backward_as(const ScoreBackward& p, void* workspace, Stream stream) {
  const BackwardLauncher<E> backward(p, true, workspace, stream);
  if (!backward.needs_sign_sums()) return;
  MatrixGradients<E> g = {static_cast<const E*>(p.grad), p.grad_batch_stride, p.grad_head_stride, p.grad_row_stride,
                          p.grad_column_stride};
  if (backward.is_swapped()) std::swap(g.row_stride, g.column_stride);
  backward.prepare();
  backward.launch_sign_sums(g);
  backward.write_gradients(g);
}

}  // namespace

int64_t score_backward_workspace(const ScoreBackward& p) {
  return p.dtype == Dtype::float64 ? BackwardLauncher<double>(p, true, nullptr, nullptr).bytes()
                                   : BackwardLauncher<float>(p, true, nullptr, nullptr).bytes();
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
