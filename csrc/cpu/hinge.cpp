// hinge: the scores of all pairs (E1), whose violations are summed per query and class of pair, and one bit per pair
// for the backward pass (E12). The sum of a row is the sum of its chunks' sums, and these are sums over blocks, in
// order. So it depends on the shape alone.
#include "kernels.h"
#include "labels.h"
#include "select.h"

namespace dissim {
namespace {

// The two classes of pairs, as indices.
enum PairClass { kPositive, kNegative, kPairClasses };

template <class E>
class HingeScan {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const Hinge& p, const Parallel& parallel) {
    const int64_t num_hard_negatives = max(0, min(p.num_hard_negatives, p.reference.rows));
    const AllPairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    const int64_t sum_bytes = kPairClasses * partition_work(all, 1).chunks * int64_t(sizeof(A));
    const int64_t heap_bytes = Selection<A>::bytes(num_hard_negatives);
    for_each_query_range(all, sum_bytes + heap_bytes, [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin, heaps_budget = all.memory_budget / 2 - rows * sum_bytes;
      const int64_t max_column_parts = max(1, heaps_budget / (rows * heap_bytes));
      const Partition partition = partition_work(all.query_range(begin, end, 0), parallel.threads, max_column_parts);
      const AllPairs<E> pairs = all.query_range(begin, end, rows * (sum_bytes + partition.column_parts * heap_bytes));
      Selection<A> selection(begin, rows, num_hard_negatives, true, partition,
                             {p.query_labels, p.reference_labels, p.exclude_index, false});
      HingeScan hinge(p, begin, rows, partition);
      scan<E>(pairs, partition, parallel, [&](const ScoreBlock<A>& block) {
        hinge.add(block);
        if (num_hard_negatives > 0) selection.add(block);
      });
      for_each(parallel, rows, [&](int64_t row) {
        hinge.sum_chunks(begin + row);
        if (num_hard_negatives > 0) hinge.add_hard_negatives(begin + row, selection.merge_parts(begin + row));
      });
    });
  }

 private:
  HingeScan(const Hinge& p, int64_t first, int64_t rows, const Partition& partition)
      : p_(p),
        first_(first),
        partition_(partition),
        margin_(A(p.margin)),
        chunk_sums_(kPairClasses * rows * partition.chunks) {}

  // The epilogue of a block. Negatives are left to add_hard_negatives if only the hardest of them count.
  void add(const ScoreBlock<A>& block) {
    const Vector<A> margin = broadcast<A>(margin_);
    const int64_t m = block.column, chunk = partition_.chunk_of(m);
    const bool starts_chunk = chunk * partition_.chunk_columns == m;
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i, label = p_.query_labels[n];
      const int64_t excluded = p_.exclude_index ? p_.exclude_index[n] : -1;
      const uint64_t counted = all_but(block.columns, excluded - m);
      const uint64_t same = same_labels(p_.reference_labels + m, label, block.columns);
      const uint64_t positive = counted & same, negative = p_.num_hard_negatives < 0 ? counted & ~same : 0;
      Vector<A> sums[kPairClasses] = {};
      uint64_t active = 0;
      for (int64_t j = 0; j < block.columns; j += lanes) {
        const Vector<A> score = load<A>(block[i] + j);
        const Integers<A> positive_lanes = mask_of_bits<A>(positive >> j),
                          negative_lanes = mask_of_bits<A>(negative >> j);
        const Vector<A> violations[kPairClasses] = {where<A>(positive_lanes, not_below_0(margin - score)),
                                                    where<A>(negative_lanes, not_below_0(margin + score))};
        for (int c = 0; c < kPairClasses; ++c) sums[c] += violations[c];
        active |= uint64_t(bits<A>((violations[kPositive] > 0) | (violations[kNegative] > 0))) << j;
      }
      memcpy(active_bits(n) + m / 8, &active, size_t(ceil_div(block.columns, 8)));
      for (int c = 0; c < kPairClasses; ++c) {
        A& chunk_sum = chunk_sums(n, c)[chunk];
        chunk_sum = (starts_chunk ? 0 : chunk_sum) + sum<A>(sums[c]);
      }
    }
  }

  static Vector<A> not_below_0(Vector<A> x) { return where<A>(~(x < 0), x); }  // keeps NaN

  void sum_chunks(int64_t n) {
    for (int c = 0; c < kPairClasses; ++c) {
      A& total = static_cast<A*>(c == kNegative ? p_.negative : p_.positive)[n] = 0;
      for (int64_t chunk = 0; chunk < partition_.chunks; ++chunk) total += chunk_sums(n, c)[chunk];
    }
  }

  void add_hard_negatives(int64_t n, const Heap<A>& hardest) {
    for (int64_t i = 0; i < hardest.count; ++i) {
      const ScoredRow<A> reference = hardest.rows[i];
      const A violation = margin_ + reference.score;
      if (!(violation < 0)) static_cast<A*>(p_.negative)[n] += violation;
      if (violation > 0) active_bits(n)[reference.index / 8] |= uint8_t(1 << reference.index % 8);
    }
  }

  A* chunk_sums(int64_t n, int pair_class) {
    return chunk_sums_ + (kPairClasses * (n - first_) + pair_class) * partition_.chunks;
  }
  uint8_t* active_bits(int64_t n) { return p_.active + n * ceil_div(p_.reference.rows, 8); }

  const Hinge& p_;
  const int64_t first_;
  const Partition partition_;
  const A margin_;
  Scratch<A> chunk_sums_;  // [rows from first_ on][kPairClasses][chunks]
};

}  // namespace

namespace DISSIM_ISA {
void hinge(const Hinge& problem, const Parallel& parallel) { dispatch<HingeScan>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
