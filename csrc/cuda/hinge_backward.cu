// hinge_backward: the gradients (E2) with the upstream gradients of the hinge (E12), which the active bits and the
// labels give. If few pairs are active, the sign sums are computed pair by pair (sparse_gradient.cuh), else tile by
// tile (gradient.cuh). The device decides, from the number of active pairs.
#include "gradient.cuh"
#include "launchers.h"
#include "sparse_gradient.cuh"

namespace dissim {
namespace {

// A source of upstream gradients, as sign_sums.cuh describes it.
template <class A>
struct PairGradients {
  using Acc = A;
  static constexpr int kUnroll = 8;  // more would spill registers
  ActivePairs<A> pairs;

  struct Cursor {
    const PairGradients& g;
    const uint8_t* row_bits;
    int64_t n, m;

    __device__ __forceinline__ A load(int columns) const {
      const int64_t column = m + columns;
      return row_bits[column / 8] >> column % 8 & 1 ? g.pairs.gradient(n, column) : A(0);
    }
    __device__ __forceinline__ void advance(int64_t rows, int64_t columns) {
      row_bits += rows * g.pairs.row_bytes;
      n += rows;
      m += columns;
    }
  };
  __device__ __forceinline__ Cursor cursor(int64_t, int64_t) const { return {*this, pairs.active, 0, 0}; }
};

ScoreBackward score_backward_of(const HingeBackward& p) {
  ScoreBackward score = {p.dtype, 1, 1, p.dim, p.query, p.reference, p.weight};
  score.grad_query = p.grad_query;
  score.grad_reference = p.grad_reference;
  score.grad_weight = p.grad_weight;
  return score;
}

template <class E>
class HingeBackwardLauncher {
 public:
  using A = Acc<E>;

  HingeBackwardLauncher(const HingeBackward& p, void* workspace, Stream stream)
      : p_(p), stream_(stream), backward_(score_backward_of(p), false, workspace, stream) {
    counts_ = backward_.template take<int64_t>(p.query.rows);
    bias_grads_ = backward_.template take<double>(p.query.rows);
  }
  int64_t bytes() const { return backward_.bytes(); }

  void run() const {
    const ActivePairs<A> pairs = {p_.query.rows,
                                  p_.reference.rows,
                                  ceil_div(p_.reference.rows, 8),
                                  p_.active,
                                  p_.query_labels,
                                  p_.reference_labels,
                                  static_cast<const A*>(p_.grad_positive),
                                  static_cast<const A*>(p_.grad_negative)};
    const PairGradients<A> g = {pairs};
    backward_.prepare();
    launch("count_pairs_kernel", count_pairs_kernel<A>, grid_for(pairs.queries), 0, stream_, pairs, counts_,
           bias_grads_);
    launch("choose_path_kernel", choose_path_kernel<A>, Grid{1, 1}, 0, stream_, pairs, counts_, bias_grads_,
           backward_.path, static_cast<A*>(p_.grad_bias));
    if (!backward_.needs_sign_sums()) return;
    launch_sparse_sums(pairs);
    backward_.launch_sign_sums(g);
    backward_.write_gradients(g);
  }

 private:
  // The kernels return at once unless PathFlags::is_sparse. They use the same splits as the dense kernels, so that
  // write_gradients finds the partial sums in the same place.
  void launch_sparse_sums(const ActivePairs<A>& pairs) const {
    using T = SignTile<A>;
    const SignSums<A>& s = backward_.s;
    SparseSide<A> queries = {s.query, s.reference, s.queries, s.references, s.padded_dim};
    queries.split_rows = s.reference_tiles * T::kReferences;
    queries.splits = s.reference_splits;
    queries.factor = 1;
    queries.sums = s.query_sums;
    SparseSide<A> references = {s.reference, s.query, s.references, s.queries, s.padded_dim};
    references.split_rows = s.query_tiles * T::kQueries;
    references.splits = s.query_splits;
    references.factor = -1;
    references.sums = s.reference_sums;
    const auto launch_side = [&](auto kernel, const SparseSide<A>& side) {
      const int64_t dim_tiles = ceil_div(s.padded_dim, SparseTile<A>::kDims);
      launch("active_pairs_kernel", kernel, grid_for(ceil_div(side.rows, kWarps) * side.splits * dim_tiles), 0, stream_,
             side, pairs, backward_.path);
    };
    launch_side(active_pairs_kernel<A, true>, queries);
    if (backward_.both_sides()) launch_side(active_pairs_kernel<A, false>, references);
  }

  const HingeBackward p_;
  const Stream stream_;
  BackwardLauncher<E> backward_;
  int64_t* counts_;
  double* bias_grads_;
};

}  // namespace

int64_t hinge_backward_workspace(const HingeBackward& p) {
  return p.dtype == Dtype::float64 ? HingeBackwardLauncher<double>(p, nullptr, nullptr).bytes()
                                   : HingeBackwardLauncher<float>(p, nullptr, nullptr).bytes();
}

void launch_hinge_backward(const HingeBackward& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return HingeBackwardLauncher<__half>(p, workspace, stream).run();
    case Dtype::bfloat16: return HingeBackwardLauncher<__nv_bfloat16>(p, workspace, stream).run();
    case Dtype::float32: return HingeBackwardLauncher<float>(p, workspace, stream).run();
    case Dtype::float64: return HingeBackwardLauncher<double>(p, workspace, stream).run();
  }
}

}  // namespace dissim
