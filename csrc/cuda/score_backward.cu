// score_backward: E2 with the upstream gradients of a matrix (gradient.cuh).
#include "gradient.cuh"
#include "launchers.h"

namespace dissim {
namespace {

// Of the matrix, or of its transpose where the sides are changed over.
template <class E>
struct MatrixGradients {
  using Acc = dissim::Acc<E>;
  static constexpr int kAtOnce = 32;
  const E* data;
  int64_t batch_stride, head_stride, row_stride, column_stride;

  struct Cursor {
    const MatrixGradients& g;
    const E* at;

    __device__ __forceinline__ Acc value(int column) const { return to_acc(at[column * g.column_stride]); }
    __device__ __forceinline__ void move(int64_t rows, int64_t columns) {
      at += rows * g.row_stride + columns * g.column_stride;
    }
  };
  __device__ __forceinline__ Cursor from(int64_t batch, int64_t head) const {
    return {*this, data + batch * batch_stride + head * head_stride};
  }
};

template <class E>
void launch_score_backward_as(const ScoreBackward& p, void* workspace, Stream stream) {
  const Gradient<E> gradient(p, true, workspace, stream);
  if (!gradient.wanted()) return;
  MatrixGradients<E> g = {static_cast<const E*>(p.grad), p.grad_batch_stride, p.grad_head_stride, p.grad_row_stride,
                          p.grad_column_stride};
  if (gradient.swapped()) std::swap(g.row_stride, g.column_stride);
  gradient.begin();
  gradient.add(g);
  gradient.finish(g);
}

}  // namespace

int64_t score_backward_workspace(const ScoreBackward& p) {
  return p.dtype == Dtype::float64 ? Gradient<double>(p, true, nullptr, nullptr).bytes()
                                   : Gradient<float>(p, true, nullptr, nullptr).bytes();
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
