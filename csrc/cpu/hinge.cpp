// hinge: E1 over all pairs, of which the violations are added up, class by class and row by row, and a bit a pair is
// kept for backward (E12). A row's sum is one of its blocks' sums, in order, so it depends on the shape alone.
#include "kernels.h"
#include "select.h"

namespace dissim {
namespace {

template <class E>
class Violations {
  using A = Wide<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const Hinge& p, const Parallel& parallel) {
    const int64_t rows = p.query.rows, hard = least(p.hard_negatives, p.reference.rows);
    const Pairs<E> pairs{p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight),
                         static_cast<const A*>(p.bias)};
    const Cuts cuts = cut(pairs, parallel.threads, hard < 0 ? INT64_MAX : Selection<A>::most_parts(rows, hard));
    Selection<A> negatives(rows, most(0, hard), true, cuts, {p.exclude, p.query_labels, p.reference_labels});
    Violations violations(p, cuts);
    scan<E>(pairs, cuts, parallel, [&](const Block<A>& block) {
      for (int64_t i = 0; i < block.rows; ++i) violations.take(block, i);
      if (hard > 0) negatives.take(block);
    });
    for_each(parallel, rows, [&](int64_t n) {
      violations.finish(n);
      if (hard > 0) violations.take_hard(n, negatives.best(n));
    });
  }

 private:
  Violations(const Hinge& p, const Cuts& cuts)
      : p_(p), cuts_(cuts), margin_(A(p.margin)), sums_(2 * p.query.rows * cuts.blocks) {}

  void take(const Block<A>& block, int64_t i) {
    const int64_t n = block.row + i;
    alignas(64) typename VectorOf<A>::scalar positive[kBlockColumns], negative[kBlockColumns];
    classify(n, block.column, block.columns, positive, negative);
    const Vector<A> margin = broadcast<A>(margin_);
    Vector<A> sums[2] = {};
    uint64_t inside[kBlockColumns / 64] = {};
    for (int64_t j = 0; j < block.columns; j += lanes) {
      const Vector<A> score = load<A>(block[i] + j);
      Integers<A> same, other;
      memcpy(&same, positive + j, sizeof same);
      memcpy(&other, negative + j, sizeof other);
      const Integers<A> either = (Integers<A>)where<A>(same, margin - score) |
                                 (Integers<A>)where<A>(other, margin + score);
      const Vector<A> violation = where<A>(~((Vector<A>)either < 0), (Vector<A>)either);  // keeps NaN
      sums[0] += where<A>(same, violation);
      sums[1] += where<A>(other, violation);
      inside[j / 64] |= uint64_t(bits<A>(violation > 0)) << j % 64;
    }
    for (int kind = 0; kind < 2; ++kind) partial(n, kind)[block.column / cuts_.width] = sum<A>(sums[kind]);
    memcpy(row_bits(n) + block.column / 8, inside, size_t(blocks_of(block.columns, 8)));
  }

  // Masks of the kept positives, and of the negatives unless the hard ones will be chosen among them.
  void classify(int64_t n, int64_t column, int64_t columns, typename VectorOf<A>::scalar* positive,
                typename VectorOf<A>::scalar* negative) const {
    const int64_t label = p_.query_labels[n], *labels = p_.reference_labels + column;
    const typename VectorOf<A>::scalar all = p_.hard_negatives < 0 ? -1 : 0;
    for (int64_t j = 0; j < columns; ++j) {
      positive[j] = labels[j] == label ? -1 : 0;
      negative[j] = ~positive[j] & all;
    }
    for (int64_t j = columns; j % lanes; ++j) positive[j] = negative[j] = 0;
    const int64_t excluded = p_.exclude ? p_.exclude[n] - column : -1;
    if (excluded >= 0 && excluded < columns) positive[excluded] = negative[excluded] = 0;
  }

  void finish(int64_t n) {
    for (int kind = 0; kind < 2; ++kind) {
      A& total = static_cast<A*>(kind ? p_.negative : p_.positive)[n] = 0;
      for (int64_t block = 0; block < cuts_.blocks; ++block) total += partial(n, kind)[block];
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

  A* partial(int64_t n, int kind) { return sums_ + (2 * n + kind) * cuts_.blocks; }
  uint8_t* row_bits(int64_t n) { return p_.active + n * blocks_of(p_.reference.rows, 8); }

  const Hinge& p_;
  const Cuts cuts_;
  const A margin_;
  Scratch<A> sums_;  // [rows][2][blocks]
};

}  // namespace

namespace DISSIM_ISA {
void hinge(const Hinge& problem, const Parallel& parallel) { dispatch<Violations>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
