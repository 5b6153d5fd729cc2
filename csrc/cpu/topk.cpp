// topk: the k best references of each query, selected from the blocks of a scan over all pairs (E1).
#include "kernels.h"
#include "select.h"

namespace dissim {
namespace {

template <class E>
struct TopKScan {
  using A = Acc<E>;

  static void run(const TopK& p, const Parallel& parallel) {
    const int64_t k = min(p.k, p.reference.rows), heap_bytes = Selection<A>::bytes(k);
    const AllPairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    for_each_query_range(all, heap_bytes, [&](int64_t begin, int64_t end) {
      const int64_t rows = end - begin;
      const int64_t max_column_parts = max(1, all.memory_budget / 2 / (rows * heap_bytes));
      const Partition partition = partition_work(all.query_range(begin, end, 0), parallel.threads, max_column_parts);
      const AllPairs<E> pairs = all.query_range(begin, end, partition.column_parts * rows * heap_bytes);
      Selection<A> selection(begin, rows, k, p.largest, partition, p.filter);
      if (k) scan<E>(pairs, partition, parallel, [&](const ScoreBlock<A>& block) { selection.add(block); });
      for_each(parallel, rows, [&](int64_t row) { write(p, begin + row, selection); });
    });
  }

  static void write(const TopK& p, int64_t n, Selection<A>& selection) {
    A* scores = static_cast<A*>(p.scores) + n * p.k;
    int64_t* indices = p.indices + n * p.k;
    const Heap<A> best = selection.merge_parts(n);
    for (int64_t i = 0; i < p.k; ++i) {
      scores[i] = i < best.count ? selection.score(best.rows[i]) : A(__builtin_nan(""));
      indices[i] = i < best.count ? best.rows[i].index : -1;
    }
  }
};

}  // namespace

namespace DISSIM_ISA {
void topk(const TopK& problem, const Parallel& parallel) { dispatch<TopKScan>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
