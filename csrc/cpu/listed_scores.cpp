// listed_scores: the scores of single pairs, with the kernels and the order of sums of a scan, so that they are
// bit-identical to those that `rank` compares.
#include "exact_scorer.h"
#include "kernels.h"

namespace dissim {
namespace {

template <class E>
struct ListedScorer {
  using A = Acc<E>;
  static constexpr int64_t kRows = ExactScorer<E>::kMaxRows;

  static void run(const ListedScores& p, const Parallel& parallel) {
    const TopK problem{p.dtype, p.dim, 0, true, p.query, p.reference, p.weight, p.bias, {}, {}, {}};
    const int64_t budget = forward_memory_budget<E>(p.query, p.reference, p.dim);
    const Blocking blocking = blocking_within(budget / parallel.threads, problem);
    for_each_with(bytes(problem, blocking), budget, parallel, p.query.rows, [&](int64_t n, Arena arena) {
      if (p.offsets[n] == p.offsets[n + 1]) return;
      ExactScorer<E> scorer(arena, problem, blocking);
      scorer.set_query(n);
      for (int64_t i = p.offsets[n]; i < p.offsets[n + 1]; i += kRows) {
        A scores[kRows];
        const int64_t count = min(kRows, p.offsets[n + 1] - i);
        scorer.score(p.indices + i, count, scores);
        memcpy(static_cast<A*>(p.scores) + i, scores, size_t(count) * sizeof(A));
      }
    });
  }

  static int64_t bytes(const TopK& problem, const Blocking& blocking) {
    Arena counted;
    ExactScorer<E>(counted, problem, blocking);
    return counted.used();
  }

  static Blocking blocking_within(int64_t budget, const TopK& problem) {
    if (ExactScorer<E>::is_small_batch(problem)) return {0, 0, problem.dim};
    return Blocking::largest({1, kRows, problem.dim},
                             [&](const Blocking& blocking) { return bytes(problem, blocking) <= budget; });
  }
};

}  // namespace

namespace DISSIM_ISA {
void listed_scores(const ListedScores& problem, const Parallel& parallel) { dispatch<ListedScorer>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
