// hinge_backward: E2 with the upstream gradients of E12, which the active bits and the labels give. Few active pairs
// are worked off one by one (sparse_gradient.cuh), many tile by tile (gradient.cuh); their number decides, on the
// device.
#include "gradient.cuh"
#include "launchers.h"
#include "sparse_gradient.cuh"

namespace dissim {
namespace {

// The upstream gradients as gradient.cuh asks for them.
template <class A>
struct PairGradients {
  using Acc = A;
  static constexpr int kAtOnce = 8;  // more spill
  ActivePairs<A> pairs;

  struct Cursor {
    const PairGradients& g;
    const uint8_t* bits;
    int64_t n, m;

    __device__ __forceinline__ A value(int columns) const {
      const int64_t at = m + columns;
      return bits[at / 8] >> at % 8 & 1 ? g.pairs.gradient(n, at) : A(0);
    }
    __device__ __forceinline__ void move(int64_t rows, int64_t columns) {
      bits += rows * g.pairs.row_bytes;
      n += rows;
      m += columns;
    }
  };
  __device__ __forceinline__ Cursor from(int64_t, int64_t) const { return {*this, pairs.active, 0, 0}; }
};

ScoreBackward score_backward_of(const HingeBackward& p) {
  ScoreBackward score = {p.dtype, 1, 1, p.dim, p.query, p.reference, p.weight};
  score.grad_query = p.grad_query;
  score.grad_reference = p.grad_reference;
  score.grad_weight = p.grad_weight;
  return score;
}

template <class E>
class HingeGradient {
 public:
  using A = Acc<E>;

  HingeGradient(const HingeBackward& p, void* workspace, Stream stream)
      : p_(p), stream_(stream), gradient_(score_backward_of(p), false, workspace, stream) {
    counts_ = gradient_.template take<int64_t>(p.query.rows);
    biases_ = gradient_.template take<double>(p.query.rows);
  }
  int64_t bytes() const { return gradient_.bytes(); }

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
    gradient_.begin();
    launch("count_pairs_kernel", count_pairs_kernel<A>, grid_of(pairs.queries), 0, stream_, pairs, counts_, biases_);
    launch("choose_route_kernel", choose_route_kernel<A>, Grid{1, 1}, 0, stream_, pairs, counts_, biases_,
           gradient_.route, static_cast<A*>(p_.grad_bias));
    if (!gradient_.wanted()) return;
    add_few(pairs);
    gradient_.add(g);
    gradient_.finish(g);
  }

 private:
  void add_few(const ActivePairs<A>& pairs) const {
    using T = SignTile<A>;
    const SignSums<A>& s = gradient_.s;
    const OwnSide<A> first = {s.query,
                              s.reference,
                              s.queries,
                              s.references,
                              s.depth,
                              s.reference_tiles * T::kReferences,
                              s.reference_splits,
                              1,
                              s.query_sums},
                     second = {s.reference,    s.query, s.references,
                               s.queries,      s.depth, s.query_tiles * T::kQueries,
                               s.query_splits, -1,      s.reference_sums};
    const auto add = [&](auto kernel, const OwnSide<A>& side) {
      const int64_t tiles = ceil_div(s.depth, SparseTile<A>::kDims);
      launch("active_pairs_kernel", kernel, grid_of(ceil_div(side.rows, kWarps) * side.splits * tiles), 0, stream_,
             side, pairs, gradient_.route);
    };
    add(active_pairs_kernel<A, true>, first);
    if (gradient_.both()) add(active_pairs_kernel<A, false>, second);
  }

  const HingeBackward p_;
  const Stream stream_;
  Gradient<E> gradient_;
  int64_t* counts_;
  double* biases_;
};

}  // namespace

int64_t hinge_backward_workspace(const HingeBackward& p) {
  return p.dtype == Dtype::float64 ? HingeGradient<double>(p, nullptr, nullptr).bytes()
                                   : HingeGradient<float>(p, nullptr, nullptr).bytes();
}

void launch_hinge_backward(const HingeBackward& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return HingeGradient<__half>(p, workspace, stream).run();
    case Dtype::bfloat16: return HingeGradient<__nv_bfloat16>(p, workspace, stream).run();
    case Dtype::float32: return HingeGradient<float>(p, workspace, stream).run();
    case Dtype::float64: return HingeGradient<double>(p, workspace, stream).run();
  }
}

}  // namespace dissim
