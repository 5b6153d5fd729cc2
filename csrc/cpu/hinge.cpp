// hinge: E1 over all pairs, of which the violations are added up, class by class and row by row, and a bit a pair is
// kept for backward (E12). A row's sum is one of its chunks' sums, and these of their blocks', in order, so it depends
// on the shape alone.
#include "kernels.h"
#include "labels.h"
#include "select.h"

namespace dissim {
namespace {

template <class E>
class Violations {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const Hinge& p, const Parallel& parallel) {
    const int64_t hard = min(p.num_hard_negatives, p.reference.rows), kept = max(0, hard);
    const Pairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    const int64_t of_sums = 2 * cut(all, 1).chunks * int64_t(sizeof(A)), of_part = Selection<A>::bytes(kept);
    for_queries(all, of_sums + of_part, [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin, spare = all.room / 2 - rows * of_sums;
      const Cuts cuts = cut(all.of_queries(begin, end, 0), parallel.threads, max(1, spare / (rows * of_part)));
      const Pairs<E> pairs = all.of_queries(begin, end, rows * (of_sums + cuts.parts * of_part));
      Selection<A> negatives(begin, rows, kept, true, cuts, {p.exclude_index, p.query_labels, p.reference_labels});
      Violations violations(p, begin, rows, cuts);
      scan<E>(pairs, cuts, parallel, [&](const Block<A>& block) {
        violations.take(block);
        if (hard > 0) negatives.take(block);
      });
      for_each(parallel, rows, [&](int64_t row) {
        violations.finish(begin + row);
        if (hard > 0) violations.take_hard(begin + row, negatives.best(begin + row));
      });
    });
  }

 private:
  Violations(const Hinge& p, int64_t first, int64_t rows, const Cuts& cuts)
      : p_(p), first_(first), cuts_(cuts), margin_(A(p.margin)), sums_(2 * rows * cuts.chunks) {}

  void take(const Block<A>& block) {
    const Vector<A> margin = broadcast<A>(margin_);
    const int64_t m = block.column, chunk = cuts_.chunk_of(m);
    const bool first = chunk * cuts_.width == m;
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i, label = p_.query_labels[n],
                    excluded = p_.exclude_index ? p_.exclude_index[n] : -1;
      const uint64_t kept = all_but(block.columns, excluded - m);
      const uint64_t same = same_labels(p_.reference_labels + m, label, block.columns);
      const uint64_t positive = kept & same, negative = p_.num_hard_negatives < 0 ? kept & ~same : 0;
      Vector<A> sums[2] = {};
      uint64_t inside = 0;
      for (int64_t j = 0; j < block.columns; j += lanes) {
        const Vector<A> score = load<A>(block[i] + j);
        const Integers<A> of_positive = lanes_of<A>(positive >> j), of_negative = lanes_of<A>(negative >> j);
        const Vector<A> losses[2] = {where<A>(of_positive, not_below_0(margin - score)),
                                     where<A>(of_negative, not_below_0(margin + score))};
        for (int kind = 0; kind < 2; ++kind) sums[kind] += losses[kind];
        inside |= uint64_t(bits<A>((losses[0] > 0) | (losses[1] > 0))) << j;
      }
      memcpy(row_bits(n) + m / 8, &inside, size_t(ceil_div(block.columns, 8)));
      for (int kind = 0; kind < 2; ++kind) {
        A& part = partial(n, kind)[chunk];
        part = (first ? 0 : part) + sum<A>(sums[kind]);
      }
    }
  }

  static Vector<A> not_below_0(Vector<A> x) { return where<A>(~(x < 0), x); }  // keeps NaN

  void finish(int64_t n) {
    for (int kind = 0; kind < 2; ++kind) {
      A& total = static_cast<A*>(kind ? p_.negative : p_.positive)[n] = 0;
      for (int64_t chunk = 0; chunk < cuts_.chunks; ++chunk) total += partial(n, kind)[chunk];
    }
  }

  void take_hard(int64_t n, const Heap<A>& negatives) {
    for (int64_t i = 0; i < negatives.count; ++i) {
      const Candidate<A> pair = negatives.all[i];
      const A violation = margin_ + pair.score;
      if (!(violation < 0)) static_cast<A*>(p_.negative)[n] += violation;
      if (violation > 0) row_bits(n)[pair.index / 8] |= uint8_t(1 << pair.index % 8);
    }
  }

  A* partial(int64_t n, int kind) { return sums_ + (2 * (n - first_) + kind) * cuts_.chunks; }
  uint8_t* row_bits(int64_t n) { return p_.active + n * ceil_div(p_.reference.rows, 8); }

  const Hinge& p_;
  const int64_t first_;
  const Cuts cuts_;
  const A margin_;
  Scratch<A> sums_;  // [rows from first_ on][2][chunks]
};

}  // namespace

namespace DISSIM_ISA {
void hinge(const Hinge& problem, const Parallel& parallel) { dispatch<Violations>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
