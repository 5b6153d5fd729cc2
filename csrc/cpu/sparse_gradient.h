// The gradients of E2 where few pairs have an upstream gradient: by their lists. A reference's sums stay in registers
// over all its pairs, so its row is read once and its gradient written once. A task owns a range of dimensions of all
// rows, so no two threads ever add to one number and every sum has one fixed order. Where memory is short some
// dimensions are done after others.
#pragma once

#include "moments.h"
#include "pair_lists.h"
#include "sign_sums.h"

namespace dissim {
namespace {

// Vectors of a window, the dimensions worked on at a time: enough for sums not to wait for one another, few enough for
// those of all queries to stay in L2.
constexpr int kWindow = 4;

// One reference in one window: sums_r = sum g sgn(q - r) over its pairs, and g sgn(q - r) added to each pair's row of
// sums_q. Both sides are usual and scaled, or the queries to be multiplied by what undoes that.
template <class A, bool of_query, bool usual>
DISSIM_INLINE void sign_sums_row(const A* query, A query_factor, const Vector<A> (&r)[kWindow], const Pair<A>* begin,
                                 const Pair<A>* end, A* sums_q, Vector<A> (&sums_r)[kWindow]) {
  for (const Pair<A>* pair = begin; pair < end; ++pair) {
    const Vector<A> g = broadcast<A>(pair->grad);
    const int64_t row = int64_t(pair->row) * kWindow * kLanes<A>;
    for (int i = 0; i < kWindow; ++i) {
      const int64_t at = row + i * kLanes<A>;
      const Vector<A> t = (usual ? 1 : query_factor) * load<A>(query + at) - r[i];
      const Vector<A> s = usual ? sign_of_usual<A>(t) : sign<A>(t);
      sums_r[i] += g * s;
      if (of_query) store<A>(sums_q + at, load<A>(sums_q + at) + g * s);
    }
  }
}

// A null gradient is not computed.
template <class E>
class SparseGradient {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int kWidth = kWindow * lanes;
  static constexpr int64_t kReferences = 512;  // at a time: their lists stay in L1 for all windows

 public:
  // Whether one window fits in.
  static bool fits(const HingeBackward& p, int64_t room) { return bytes(p, 1) <= room; }

  // Lists are made once for all dimensions that fit in, and again for others.
  template <class Lists, class Grad>
  static void run(const HingeBackward& p, const Parallel& parallel, int64_t room, Lists& lists, const Grad& grad) {
    Scratch<Pair<A>> pairs(lists.size());
    Scratch<int32_t> places(lists.places());
    const auto fits = [&](int64_t windows) { return bytes(p, windows) <= room; };
    Chunks::each(ceil_div(p.dim, kWidth), kWidth, fits, [&](const Chunks& windows) {
      const int64_t taken = bytes(p, windows.count);
      Scratch<char> memory(taken);
      Arena arena(memory);
      SparseGradient gradient(arena, p, windows);
      gradient.run(parallel, lists, pairs, places, room - taken, grad);
    });
  }

 private:
  SparseGradient(Arena& arena, const HingeBackward& p, const Chunks& windows)
      : p_(p),
        windows_(windows),
        query_(arena.take<A>(p.query.rows * windows.count * kWidth)),
        sums_q_(arena.take<A>(p.query.rows * windows.count * kWidth)),
        factor_(arena.take<A>(windows.count)),
        centre_(arena.take<double>(windows.count * kWidth)),
        total_(arena.take<double>(windows.count * kWidth)) {}

  static int64_t bytes(const HingeBackward& p, int64_t windows) {
    Arena counted;
    SparseGradient(counted, p, Chunks{0, windows});
    return counted.used();
  }
  template <class Lists, class Grad>
  void run(const Parallel& parallel, Lists& lists, Pair<A>* pairs, int32_t* places, int64_t room, const Grad& grad) {
    const int64_t ranges = min(windows_.count, parallel.threads);
    int64_t first = 0, last = 0;
    do {
      last = lists.make(first, pairs, places, room, parallel, grad);
      for_each(parallel, ranges, [&](int64_t i) {
        const int64_t begin = i * windows_.count / ranges * kWidth, end = (i + 1) * windows_.count / ranges * kWidth;
        if (first == 0) this->begin(begin, end);
        p_.grad_query || p_.grad_weight ? add<true>(lists, pairs, first, last, begin, end)
                                        : add<false>(lists, pairs, first, last, begin, end);
        if (last >= p_.reference.rows) finish(begin, end);
      });
      first = last;
    } while (last < p_.reference.rows);
  }

  // Dimensions [begin, end) of those of these windows; below too, all but first_ are such.
  void begin(int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; d += kWidth) {
      for (int64_t n = 0; n < p_.query.rows; ++n)
        pack_chunks<E>(p_.query, 0, n, 1, p_.dim, (first_ + d) / lanes, (first_ + d + kWidth) / lanes,
                       query_ + at(d, n), lanes);
      factor_[d / kWidth] = scale_usual<A>(query_ + at(d, 0), p_.query.rows * kWindow);
    }
    memset(sums_q_ + at(begin, 0), 0, size_t(at(end, 0) - at(begin, 0)) * sizeof(A));
    memset(total_ + begin, 0, size_t(end - begin) * sizeof(double));
    if (p_.grad_weight) find_center<E>(p_.reference, 0, first_ + begin, first_ + end, p_.dim, centre_ + begin);
  }

  template <bool of_query, class Lists>
  void add(const Lists& lists, const Pair<A>* pairs, int64_t first, int64_t last, int64_t begin, int64_t end) {
    last = min(last, p_.reference.rows);
    for (; first < last; first += kReferences)
      for (int64_t d = begin; d < end; d += kWidth)
        for (int64_t m = first; m < min(first + kReferences, last); ++m)
          add_reference<of_query>(m, d, pairs + lists.begin(m), pairs + lists.begin(m + 1));
  }

  // One reference in one window: its sums stay in registers.
  template <bool of_query>
  void add_reference(int64_t m, int64_t d, const Pair<A>* pair, const Pair<A>* last) {
    alignas(64) A reference[kWidth], sums[kWidth];
    Vector<A> sums_r[kWindow] = {};
    if (pair < last) {
      Vector<A> r[kWindow], scaled[kWindow];
      load_chunks<E>(p_.reference, 0, m, p_.dim, (first_ + d) / lanes, r);
      for (int i = 0; i < kWindow; ++i) store<A>(reference + i * lanes, r[i]), scaled[i] = kSignScale<A> * r[i];
      const A factor = factor_[d / kWidth], *query = query_ + at(d, 0);
      A* sums_q = sums_q_ + at(d, 0);
      if (kUsualIsFaster<A> && factor != 1 && all_usual<A>(r))
        sign_sums_row<A, of_query, true>(query, factor, scaled, pair, last, sums_q, sums_r);
      else
        sign_sums_row<A, of_query, false>(query, factor, r, pair, last, sums_q, sums_r);
    }
    for (int i = 0; i < kWindow; ++i) store<A>(sums + i * lanes, sums_r[i]);
    if (pair < last && p_.grad_weight) add_moment<A>(reference, 1, sums, centre_ + d, kWidth, total_ + d);
    write(p_.grad_reference, m, d, sums, -1 / kSignUnit<A>);
  }

  // total_ has the references' part of the gradient of the weights, which the queries' is taken from.
  void finish(int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) total_[d] = -total_[d];
    for (int64_t d = begin; d < end; d += kWidth)
      for (int64_t n = 0; n < p_.query.rows; ++n) {
        if (p_.grad_weight)
          add_moment<A>(query_ + at(d, n), factor_[d / kWidth], sums_q_ + at(d, n), centre_ + d, kWidth, total_ + d);
        write(p_.grad_query, n, d, sums_q_ + at(d, n), 1 / kSignUnit<A>);
      }
    if (p_.grad_weight)
      for (int64_t d = begin; d < min(end, p_.dim - first_); ++d)
        static_cast<A*>(p_.grad_weight)[first_ + d] = A(total_[d] / kSignUnit<A>);
  }

  // grad[row][first_ + d] = factor weight[first_ + d] sums[d] in one window.
  void write(void* grad, int64_t row, int64_t d, const A* sums, A factor) const {
    if (!grad) return;
    const int64_t count = min(kWidth, p_.dim - first_ - d);
    const A* weight = static_cast<const A*>(p_.weight) + first_ + d;
    E* to = static_cast<E*>(grad) + row * p_.dim + first_ + d;
    for (int64_t i = 0; i < count; i += 64 / sizeof(E)) __builtin_prefetch(to + kRowsAhead * p_.dim + i, 1);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
      store_narrow<E>(to + i, broadcast<A>(factor) * load<A>(weight + i) * load<A>(sums + i));
    for (; i < count; ++i) to[i] = narrow<E>(factor * weight[i] * sums[i]);
  }

  int64_t at(int64_t d, int64_t n) const { return d * p_.query.rows + n * kWidth; }

  const HingeBackward& p_;
  const Chunks windows_;  // of kWidth dimensions
  const int64_t first_ = windows_.first * kWidth;
  A *const query_, *const sums_q_;  // [windows][rows][kWidth]
  A* const factor_;  // undoes the scales of the queries
  double *const centre_, *const total_;  // [windows][kWidth]
};

}  // namespace
}  // namespace dissim
