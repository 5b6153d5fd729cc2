// The plain top-k: the k best references of each query, selected from the blocks of a scan over all pairs (E1).
#pragma once

#include "select.h"

namespace dissim {
namespace {

template <class E>
struct TopKScan {
  using A = Acc<E>;

  static void run(const TopK& p, const Parallel& parallel) { run(p, 0, p.query.rows, parallel); }

  // For the queries [first, last).
  static void run(const TopK& p, int64_t first, int64_t last, const Parallel& parallel) {
    const int64_t k = min(p.k, p.reference.rows), heap_bytes = Selection<A>::bytes(k);
    const AllPairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    for_each_query_range(all.query_range(first, last, 0), heap_bytes, [&](int64_t range_begin, int64_t range_end) {
      const int64_t begin = first + range_begin, end = first + range_end, rows = end - begin;
      const int64_t max_column_parts = max(1, all.memory_budget / 2 / (rows * heap_bytes));
      const Partition partition = partition_work(all.query_range(begin, end, 0), parallel.threads, max_column_parts);
      const AllPairs<E> pairs = all.query_range(begin, end, partition.column_parts * rows * heap_bytes);
      Selection<A> selection(begin, rows, k, p.largest, partition, p.filter);
      if (k) scan<E>(pairs, partition, parallel, [&](const ScoreBlock<A>& block) { selection.add(block); });
      for_each(parallel, rows, [&](int64_t row) { write_best(p, begin + row, selection.merge_parts(begin + row)); });
    });
  }
};

}  // namespace
}  // namespace dissim
