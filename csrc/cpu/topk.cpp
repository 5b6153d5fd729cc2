// topk: E1 over all pairs, of which each query keeps its k best.
#include "kernels.h"
#include "select.h"

namespace dissim {
namespace {

template <class E>
struct Best {
  using A = Acc<E>;

  static void run(const TopK& p, const Parallel& parallel) {
    const int64_t k = min(p.k, p.reference.rows), bytes = Selection<A>::bytes(k);
    const Pairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    for_queries(all, bytes, [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      const Cuts cuts = cut(all.of_queries(begin, end, 0), parallel.threads, max(1, all.room / 2 / (rows * bytes)));
      const Pairs<E> pairs = all.of_queries(begin, end, cuts.parts * rows * bytes);
      Selection<A> selection(begin, rows, k, p.largest, cuts, {p.exclude_index, p.query_labels, p.reference_labels});
      if (k) scan<E>(pairs, cuts, parallel, [&](const Block<A>& block) { selection.take(block); });
      for_each(parallel, rows, [&](int64_t row) { write(p, begin + row, selection); });
    });
  }

  static void write(const TopK& p, int64_t n, Selection<A>& selection) {
    A* scores = static_cast<A*>(p.scores) + n * p.k;
    int64_t* indices = p.indices + n * p.k;
    const Heap<A> best = selection.best(n);
    for (int64_t i = 0; i < p.k; ++i) {
      scores[i] = i < best.count ? selection.score(best.all[i]) : A(__builtin_nan(""));
      indices[i] = i < best.count ? best.all[i].index : -1;
    }
  }
};

}  // namespace

namespace DISSIM_ISA {
void topk(const TopK& problem, const Parallel& parallel) { dispatch<Best>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
