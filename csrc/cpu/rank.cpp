// rank: E1 over all pairs, whose scores are compared with each query's listed pairs: how many references come before
// each of them. Of a short list every pair is compared with 64 scores at a time; in a long one each score is looked
// up, and the counts of its places are added up at the end.
#include "kernels.h"
#include "labels.h"
#include "scan.h"

namespace dissim {
namespace {

constexpr int64_t kShortList = 64;  // comparing a whole list costs about as much as looking up 64 scores

template <class E>
class RankCounter {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const Rank& p, const Parallel& parallel) {
    const AllPairs<E> pairs{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    const RankCounter counter(p);
    memset(p.nan_rows, 0, size_t(p.query.rows));
    memset(p.counts, 0, size_t(p.offsets[p.query.rows]) * sizeof(int64_t));
    scan<E>(pairs, partition_work(pairs, parallel.threads), parallel,
            [&](const ScoreBlock<A>& block) { counter.take(block); });
    for_each(parallel, p.query.rows, [&](int64_t n) { counter.finish(n); });
  }

 private:
  explicit RankCounter(const Rank& p) : p_(p), listed_(static_cast<const A*>(p.listed_scores)) {}

  int64_t begin(int64_t n) const { return p_.offsets[n]; }
  int64_t end(int64_t n) const { return p_.offsets[n + 1]; }
  bool is_short(int64_t n) const { return end(n) - begin(n) <= kShortList; }

  void take(const ScoreBlock<A>& block) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i;
      uint64_t nan = 0;
      for (int64_t j = 0; j < block.columns; j += lanes) {
        const Vector<A> scores = load<A>(block[i] + j);
        nan |= uint64_t(bits<A>(scores != scores)) << j;
      }
      if (nan & all_but(block.columns, -1)) __atomic_store_n(p_.nan_rows + n, 1, __ATOMIC_RELAXED);
      is_short(n) ? compare(n, block.column, block.columns, block[i])
                  : look_up(n, block.column, block.columns, block[i]);
    }
  }

  // From the worst listed pair on: where no score reaches it, none reaches a better one.
  void compare(int64_t n, int64_t m, int64_t columns, const A* scores) const {
    for (int64_t i = end(n); i-- > begin(n);) {
      const Vector<A> listed = broadcast<A>(listed_[i]);
      uint64_t above = 0, equal = 0;
      for (int64_t j = 0; j < columns; j += lanes) {
        const Vector<A> some = load<A>(scores + j);
        above |= uint64_t(bits<A>(some > listed)) << j;
        equal |= uint64_t(bits<A>(some == listed)) << j;
      }
      if (!((above | equal) & all_but(columns, -1))) break;
      const int64_t own = p_.indices[i] - m;  // where the listed pair itself is
      const uint64_t lower = own <= 0 ? 0 : all_but(min(own, 64), -1);
      count(i, __builtin_popcountll((above | (equal & lower)) & all_but(columns, own)));
    }
  }

  // Counts each score at the first listed pair that it comes before.
  void look_up(int64_t n, int64_t m, int64_t columns, const A* scores) const {
    for (int64_t j = 0; j < columns; ++j) {
      int64_t low = begin(n), high = end(n);
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        const A listed = listed_[middle];
        if (scores[j] > listed || (scores[j] == listed && m + j < p_.indices[middle]))
          high = middle;
        else
          low = middle + 1;
      }
      if (low < end(n)) count(low, 1);
    }
  }

  void finish(int64_t n) const {
    if (is_short(n)) return;
    for (int64_t i = begin(n) + 1; i < end(n); ++i) p_.counts[i] += p_.counts[i - 1];
  }

  // Other threads count other references for the same query.
  void count(int64_t i, int64_t by) const { __atomic_fetch_add(p_.counts + i, by, __ATOMIC_RELAXED); }

  const Rank& p_;
  const A* const listed_;
};

}  // namespace

namespace DISSIM_ISA {
void rank(const Rank& problem, const Parallel& parallel) { dispatch<RankCounter>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
