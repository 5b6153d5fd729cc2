// The k best references of each query out of blocks of scores, shared by topk and hinge: equal scores by lower index,
// NaN after every number. This is a total order, so the result does not depend on the order or the cut of the blocks.
#pragma once

#include "scan.h"

namespace dissim {
namespace {

// Which pairs are left out.
struct Filter {
  const int64_t* exclude_index;                          // [rows] or null
  const int64_t *query_labels, *reference_labels;  // both or neither
  bool bars(int64_t n, int64_t m) const {
    return (exclude_index && exclude_index[n] == m) || (query_labels && query_labels[n] == reference_labels[m]);
  }
};

template <class A>
struct Candidate {
  A score;
  int64_t index;
  bool beats(const Candidate& other) const {
    if (score != score || other.score != other.score)
      return score == score || (other.score != other.score && index < other.index);
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The k best candidates offered so far: a heap with the worst on top.
template <class A>
struct Heap {
  Candidate<A>* all;
  int64_t k, count;

  // A score not above this one is not among the best; NaN while every candidate is, or the worst of them is no number.
  A threshold() const { return count < k ? A(__builtin_nan("")) : all[0].score; }

  void offer(Candidate<A> candidate) {
    if (count < k) {
      int64_t at = count++;
      for (; at && all[(at - 1) / 2].beats(candidate); at = (at - 1) / 2) all[at] = all[(at - 1) / 2];
      all[at] = candidate;
    } else if (candidate.beats(all[0])) {
      sink(candidate, count);
    }
  }

  void sort() {  // best first
    for (int64_t size = count; size-- > 1;) {
      const Candidate<A> worst = all[0], last = all[size];
      sink(last, size);
      all[size] = worst;
    }
  }

 private:
  void sink(Candidate<A> candidate, int64_t size) {  // puts it in place of the top
    int64_t at = 0;
    for (int64_t below; (below = 2 * at + 1) < size; at = below) {
      if (below + 1 < size && all[below].beats(all[below + 1])) ++below;
      if (!candidate.beats(all[below])) break;
      all[at] = all[below];
    }
    all[at] = candidate;
  }
};

// Takes the blocks of a scan of queries from `first` on; each part of the columns has heaps of its own.
template <class A>
class Selection {
  static constexpr int lanes = kLanes<A>;

 public:
  // Of one query in one part.
  static int64_t bytes(int64_t k) { return k * int64_t(sizeof(Candidate<A>)) + int64_t(sizeof(int64_t)); }

  Selection(int64_t first, int64_t rows, int64_t k, bool largest, const Cuts& cuts, const Filter& filter)
      : first_(first),
        rows_(rows),
        k_(k),
        sign_(largest ? 1 : -1),
        cuts_(cuts),
        filter_(filter),
        counts_(cuts.parts * rows),
        candidates_(cuts.parts * rows * k) {
    memset(counts_, 0, size_t(cuts.parts * rows) * sizeof(int64_t));
  }

  void take(const Block<A>& block) {
    const Vector<A> sign = broadcast<A>(sign_);
    const int64_t part = cuts_.part_of(block.column);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i;
      Heap<A> heap = heap_of(part, n - first_);
      Vector<A> threshold = broadcast<A>(heap.threshold());
      for (int64_t j = 0; j < block.columns; j += lanes) {
        // "not at or below" lets NaN through on both sides; what stands behind the last column does not count
        uint32_t passed = bits<A>(~(sign * load<A>(block[i] + j) <= threshold));
        if (block.columns - j < lanes) passed &= (1u << (block.columns - j)) - 1;
        for (; passed; passed &= passed - 1) {
          const int64_t m = j + __builtin_ctz(passed);
          if (filter_.bars(n, block.column + m)) continue;
          heap.offer({sign_ * block[i][m], block.column + m});
          threshold = broadcast<A>(heap.threshold());
        }
      }
      counts_[part * rows_ + n - first_] = heap.count;
    }
  }

  // The best of all parts, best first; once a row, after the scan.
  Heap<A> best(int64_t n) {
    Heap<A> heap = heap_of(0, n - first_);
    for (int64_t part = 1; part < cuts_.parts; ++part) {
      const Heap<A> other = heap_of(part, n - first_);
      for (int64_t i = 0; i < other.count; ++i) heap.offer(other.all[i]);
    }
    heap.sort();
    return heap;
  }

  A score(const Candidate<A>& candidate) const { return sign_ * candidate.score; }

 private:
  Heap<A> heap_of(int64_t part, int64_t row) {
    return {candidates_ + (part * rows_ + row) * k_, k_, counts_[part * rows_ + row]};
  }

  const int64_t first_, rows_, k_;
  const A sign_;
  const Cuts cuts_;
  const Filter filter_;
  Scratch<int64_t> counts_;
  Scratch<Candidate<A>> candidates_;
};

// Calls each(begin, end) for runs of queries that together are all, each so many as find `bytes` a query in half the
// room.
template <class E, class Each>
void for_queries(const Pairs<E>& pairs, int64_t bytes, const Each& each) {
  const int64_t rows = pairs.query.rows, some = max(1, pairs.room / 2 / bytes);
  for (int64_t begin = 0; begin < rows; begin += some) each(begin, min(begin + some, rows));
}

}  // namespace
}  // namespace dissim
