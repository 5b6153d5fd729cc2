// Selection of the k best references of each query from blocks of scores, shared by topk and hinge. The order is:
// better score first, then lower index, and NaN after every number. It is a total order, so the result does not depend
// on the order of the blocks or on the partition.
#pragma once

#include "labels.h"
#include "scan.h"

namespace dissim {
namespace {

// A reference and its score by some query.
template <class A>
struct ScoredRow {
  A score;
  int64_t index;
  bool is_better_than(const ScoredRow& other) const {
    if (score != score || other.score != other.score)
      return score == score || (other.score != other.score && index < other.index);
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The k best rows of those offered so far: a binary heap with the worst on top.
template <class A>
struct Heap {
  ScoredRow<A>* rows;
  int64_t k, count;

  // Only rows with a score above this one, or with an equal score and a lower index, can enter the heap. It is NaN if
  // every row can, that is, if the heap is not full or its worst score is NaN.
  A threshold() const { return count < k ? A(__builtin_nan("")) : rows[0].score; }

  void offer(ScoredRow<A> row) {
    if (count < k) {
      int64_t at = count++;
      for (; at && rows[(at - 1) / 2].is_better_than(row); at = (at - 1) / 2) rows[at] = rows[(at - 1) / 2];
      rows[at] = row;
    } else if (row.is_better_than(rows[0])) {
      replace_top(row, count);
    }
  }

  void sort() {  // best first; no heap any more
    for (int64_t size = count; size-- > 1;) {
      const ScoredRow<A> worst = rows[0], last = rows[size];
      replace_top(last, size);
      rows[size] = worst;
    }
  }

 private:
  // Puts a row in place of the top of the first `size` rows and moves it down to where it belongs.
  void replace_top(ScoredRow<A> row, int64_t size) {
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
      if (child + 1 < size && rows[child].is_better_than(rows[child + 1])) ++child;
      if (!row.is_better_than(rows[child])) break;
      rows[at] = rows[child];
    }
    rows[at] = row;
  }
};

// Offers `columns` scores of query n to its heap, with their sign changed if `sign` is -1. index(j) is the reference of
// scores[j]. scores[j] is undefined from `columns` on, but can be read up to a whole vector. `ascending`: all indices
// are above those in the heap, so that equal scores do not enter it.
template <bool ascending, class A, class Index>
void offer_scores(Heap<A>& heap, const Filter& filter, A sign, int64_t n, const A* scores, int64_t columns,
                  const Index& index) {
  constexpr int lanes = kLanes<A>;
  Vector<A> threshold = broadcast<A>(heap.threshold());
  for (int64_t j = 0; j < columns; j += lanes) {
    // "not below" is true for NaN on either side.
    const Vector<A> some = sign * load<A>(scores + j);
    uint32_t passed = bits<A>(ascending ? ~(some <= threshold) : ~(some < threshold));
    if (columns - j < lanes) passed &= (1u << (columns - j)) - 1;
    for (; passed; passed &= passed - 1) {
      const int64_t m = j + __builtin_ctz(passed);
      if (!is_candidate(filter, n, index(m))) continue;
      heap.offer({sign * scores[m], index(m)});
      threshold = broadcast<A>(heap.threshold());
    }
  }
}

// Writes a sorted heap to the results of query n.
template <class A>
void write_best(const TopK& p, int64_t n, const Heap<A>& heap) {
  A* scores = static_cast<A*>(p.scores) + n * p.k;
  int64_t* indices = p.indices + n * p.k;
  for (int64_t i = 0; i < p.k; ++i) {
    const bool found = i < heap.count;
    scores[i] = !found ? A(__builtin_nan("")) : p.largest ? heap.rows[i].score : -heap.rows[i].score;
    indices[i] = found ? heap.rows[i].index : -1;
  }
}

// Selects from the blocks of a scan over queries [first, first + rows). Each column part has heaps of its own, so that
// tasks share nothing.
template <class A>
class Selection {
 public:
  // Memory of one query in one column part.
  static int64_t bytes(int64_t k) { return k * int64_t(sizeof(ScoredRow<A>)) + int64_t(sizeof(int64_t)); }

  Selection(int64_t first, int64_t rows, int64_t k, bool largest, const Partition& partition, const Filter& filter)
      : first_(first),
        rows_(rows),
        k_(k),
        sign_(largest ? 1 : -1),
        partition_(partition),
        filter_(filter),
        counts_(partition.column_parts * rows),
        heap_rows_(partition.column_parts * rows * k) {
    memset(counts_, 0, size_t(partition.column_parts * rows) * sizeof(int64_t));
  }

  void add(const ScoreBlock<A>& block) {
    const int64_t part = partition_.column_part_of(block.column);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i;
      Heap<A> heap = heap_of(part, n - first_);
      offer_scores<true>(heap, filter_, sign_, n, block[i], block.columns, [&](int64_t j) { return block.column + j; });
      counts_[part * rows_ + n - first_] = heap.count;
    }
  }

  // The best rows of query n in all parts, best first. To be called once per query, after the scan.
  Heap<A> merge_parts(int64_t n) {
    Heap<A> heap = heap_of(0, n - first_);
    for (int64_t part = 1; part < partition_.column_parts; ++part) {
      const Heap<A> other = heap_of(part, n - first_);
      for (int64_t i = 0; i < other.count; ++i) heap.offer(other.rows[i]);
    }
    heap.sort();
    return heap;
  }

 private:
  Heap<A> heap_of(int64_t part, int64_t row) {
    return {heap_rows_ + (part * rows_ + row) * k_, k_, counts_[part * rows_ + row]};
  }

  const int64_t first_, rows_, k_;
  const A sign_;
  const Partition partition_;
  const Filter filter_;
  Scratch<int64_t> counts_;
  Scratch<ScoredRow<A>> heap_rows_;
};

// Calls visit(begin, end) for ranges of queries that together are all queries. Each is so long that `bytes` per query
// fit into half of the memory budget.
template <class E, class Visit>
void for_each_query_range(const AllPairs<E>& pairs, int64_t bytes, const Visit& visit) {
  const int64_t rows = pairs.query.rows, range_rows = max(1, pairs.memory_budget / 2 / bytes);
  for (int64_t begin = 0; begin < rows; begin += range_rows) visit(begin, min(begin + range_rows, rows));
}

}  // namespace
}  // namespace dissim
