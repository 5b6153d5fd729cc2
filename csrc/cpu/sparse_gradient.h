// The gradients of E2 where few pairs have an upstream gradient: lists of them, for some references at a time. A
// reference's sums stay in registers over all its pairs, so its row is read once and its gradient written once. A task
// owns a range of dimensions of all rows, so no two threads ever add to one number and every sum has one fixed order.
#pragma once

#include "moments.h"
#include "sign_sums.h"

namespace dissim {
namespace {

// A pair of some reference: the query's row and the upstream gradient.
template <class A>
struct Pair {
  int32_t row;
  A grad;
};

// The pairs of some references, one reference after another.
template <class A>
class PairLists {
 public:
  explicit PairLists(int64_t most_of_one) : pairs_(most(kPairs, most_of_one)) {}

  void clear() { references_ = ends_[0] = 0; }
  // Begins the list of another reference with so many pairs, if there is room for them.
  bool next(int64_t pairs) {
    const int64_t end = ends_[references_];
    if (references_ == kReferences || (references_ && end + pairs > kPairs)) return false;
    ends_[++references_] = end;
    return true;
  }
  void add(int32_t row, A grad) { pairs_[ends_[references_]++] = {row, grad}; }

  int64_t references() const { return references_; }
  const Pair<A>* begin(int64_t reference) const { return pairs_ + ends_[reference]; }
  const Pair<A>* end(int64_t reference) const { return pairs_ + ends_[reference + 1]; }

 private:
  static constexpr int64_t kReferences = 512, kPairs = 1 << 16;
  int64_t references_, ends_[kReferences + 1];
  Scratch<Pair<A>> pairs_;
};

// The sums of one reference in a window of dimensions: sums_r = sum g sgn(q - r) over its pairs, and g sgn(q - r) added
// to each pair's row of sums_q.
template <class A, int window, bool of_query, bool usual>
void sign_sums_row(const A* query, A query_factor, const A* reference, A reference_factor, const Pair<A>* begin,
                   const Pair<A>* end, A* sums_q, A* sums_r) {
  constexpr int lanes = kLanes<A>, some = 4;  // vectors at a time, so that sums do not wait for one another
  for (int d = 0; d < window; d += some * lanes) {
    Vector<A> r[some], sums[some] = {};
    for (int i = 0; i < some; ++i) r[i] = (usual ? 1 : reference_factor) * load<A>(reference + d + i * lanes);
    for (const Pair<A>* pair = begin; pair < end; ++pair) {
      const Vector<A> g = broadcast<A>(pair->grad);
      const int64_t at = int64_t(pair->row) * window + d;
      for (int i = 0; i < some; ++i) {
        const Vector<A> t = (usual ? 1 : query_factor) * load<A>(query + at + i * lanes) - r[i];
        const Vector<A> s = usual ? sign_of_usual<A>(t) : sign<A>(t);
        sums[i] += g * s;
        if (of_query) store<A>(sums_q + at + i * lanes, load<A>(sums_q + at + i * lanes) + g * s);
      }
    }
    for (int i = 0; i < some; ++i) store<A>(sums_r + d + i * lanes, sums[i]);
  }
}

// list(m, lists) adds the pairs of references m, m + 1 and so on. A null gradient is not computed.
template <class E, class List>
class SparseGradient {
  using A = Wide<E>;
  static constexpr int lanes = kLanes<A>;
  // Dimensions at a time: few enough for those of all queries to stay in L2.
  static constexpr int kWindow = 256 / sizeof(A);

 public:
  static void run(const HingeBackward& p, const Parallel& parallel, const List& list) {
    const int64_t windows = blocks_of(p.dim, kWindow), ranges = least(windows, parallel.threads);
    for_each(parallel, ranges, [&](int64_t i) {
      SparseGradient range(p, i * windows / ranges, (i + 1) * windows / ranges);
      p.grad_query || p.grad_weight ? range.template add<true>(list) : range.template add<false>(list);
      range.finish();
    });
  }

 private:
  // Windows [begin, end) of dimensions.
  SparseGradient(const HingeBackward& p, int64_t begin, int64_t end)
      : p_(p), first_(begin * kWindow), width_((end - begin) * kWindow) {
    for (int64_t d = 0; d < width_; d += kWindow)
      for (int64_t n = 0; n < p.query.rows; ++n) pack(p.query, n, d, query_ + d * p.query.rows + n * kWindow);
    factor_ = scale_usual<A>(query_, p.query.rows * width_ / lanes);
    memset(sums_q_, 0, size_t(p.query.rows * width_) * sizeof(A));
    memset(total_, 0, size_t(width_) * sizeof(double));
    if (p.grad_weight) find_centre<E>(p.reference, 0, first_, first_ + width_, p.dim, centre_);
  }

  template <bool of_query>
  void add(const List& list) {
    PairLists<A> lists(p_.query.rows);
    for (int64_t m = 0; m < p_.reference.rows; m += lists.references()) {
      lists.clear();
      list(m, lists);
      for (int64_t d = 0; d < width_; d += kWindow)
        for (int64_t j = 0; j < lists.references(); ++j) add_piece<of_query>(m + j, d, lists.begin(j), lists.end(j));
    }
  }

  // One reference in one window.
  template <bool of_query>
  void add_piece(int64_t m, int64_t d, const Pair<A>* pair, const Pair<A>* last) {
    alignas(64) A reference[kWindow], sums[kWindow] = {};
    if (pair < last) {
      pack(p_.reference, m, d, reference);
      const A factor = scale_usual<A>(reference, kWindow / lanes);
      const auto add = both_usual(factor_, factor) ? sign_sums_row<A, kWindow, of_query, true>
                                                   : sign_sums_row<A, kWindow, of_query, false>;
      add(query_ + d * p_.query.rows, factor_, reference, factor, pair, last, sums_q_ + d * p_.query.rows, sums);
      if (p_.grad_weight) add_moment<A>(reference, factor, sums, centre_ + d, kWindow, total_ + d);
    }
    write(p_.grad_reference, m, d, sums, -1 / kSignUnit<A>);
  }

  // total_ has the references' part of the gradient of the weights, which the queries' is taken from.
  void finish() {
    for (int64_t i = 0; i < width_; ++i) total_[i] = -total_[i];
    for (int64_t d = 0; d < width_; d += kWindow)
      for (int64_t n = 0; n < p_.query.rows; ++n) {
        const int64_t at = d * p_.query.rows + n * kWindow;
        add_moment<A>(query_ + at, factor_, sums_q_ + at, centre_ + d, kWindow, total_ + d);
        write(p_.grad_query, n, d, sums_q_ + at, 1 / kSignUnit<A>);
      }
    if (p_.grad_weight)
      for (int64_t d = first_; d < least(first_ + width_, p_.dim); ++d)
        static_cast<A*>(p_.grad_weight)[d] = A(total_[d - first_] / kSignUnit<A>);
  }

  void pack(const Rows& rows, int64_t row, int64_t d, A* to) const {
    const int64_t chunk = (first_ + d) / lanes;
    pack_chunks<E>(rows, 0, row, 1, p_.dim, chunk, chunk + kWindow / lanes, to, lanes);
  }

  // grad[row][d] = factor weight[d] sums[d] in one window.
  void write(void* grad, int64_t row, int64_t d, const A* sums, A factor) const {
    if (!grad) return;
    const int64_t first = first_ + d, count = least(kWindow, p_.dim - first);
    const A* weight = static_cast<const A*>(p_.weight) + first;
    E* to = static_cast<E*>(grad) + row * p_.dim + first;
    for (int64_t i = 0; i < count; i += 64 / sizeof(E)) __builtin_prefetch(to + kRowsAhead * p_.dim + i, 1);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
      store_narrow<E>(to + i, broadcast<A>(factor) * load<A>(weight + i) * load<A>(sums + i));
    for (; i < count; ++i) to[i] = narrow<E>(factor * weight[i] * sums[i]);
  }

  const HingeBackward& p_;
  const int64_t first_, width_;
  A factor_;  // undoes the scale of the queries
  Scratch<A> query_{p_.query.rows * width_}, sums_q_{p_.query.rows * width_};  // [windows][rows][kWindow]
  Scratch<double> centre_{width_}, total_{width_};
};

}  // namespace
}  // namespace dissim
