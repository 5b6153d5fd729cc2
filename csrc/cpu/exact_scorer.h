// The refinement step of quantized_topk: exact scores of single references, and the k best of them.
#pragma once

#include "select.h"

namespace dissim {
namespace {

// Scores a few references for one query, with the kernels and the order of sums of topk, so that the scores are
// bit-identical. If the smallest scores are searched, it returns them with their sign changed.
template <class E>
class ExactScorer {
  using A = Acc<E>;

 public:
  static constexpr int64_t kMaxRows = kPanel<A>;  // references of one call

  ExactScorer(Arena& arena, const TopK& problem, const Blocking& blocking)
      : p_(problem),
        small_batch_(is_small_batch(p_)),
        acc_query_(arena.take<A>(small_batch_ ? p_.dim : 0)),
        scores_(arena.take<A>(kTileRows * kBlockColumns)),
        scorer_(arena, p_.dim, blocking) {}

  // As in scan.h: whether topk would score this problem by score_rows.
  static bool is_small_batch(const TopK& problem) { return problem.query.rows <= kSmallBatchRows; }

  void set_query(int64_t row) {
    query_row_ = row_of<E>(p_.query, 0, row);
    if (small_batch_) {
      query_ = acc_row<E>(p_.query, 0, row, 0, p_.dim, acc_query_);
    } else {
      scorer_.set_head(weight_, bias_);
      scorer_.set_queries(&query_row_, p_.query.dim_stride, 1);
    }
  }

  // scores[i] = the score of reference indices[i], for i < count <= kMaxRows.
  void score(const int64_t* indices, int64_t count, A* scores) {
    const E* from[kMaxRows];
    for (int64_t i = 0; i < kMaxRows; ++i) from[i] = row_of<E>(p_.reference, 0, indices[min(i, count - 1)]);
    if (small_batch_) {
      constexpr int64_t group = kRowGroup<A>, no_prefetch = 0;
      for (int64_t i = 0; i < count; i += group)
        score_rows<E, 1>(&query_, from + i, p_.reference.dim_stride, no_prefetch, weight_, bias_, p_.dim, scores_ + i,
                         kMaxRows);
    } else {
      scorer_.set_references(from, p_.reference.dim_stride, count);
      scorer_.score(0, scores_);
    }
    for (int64_t i = 0; i < count; ++i) scores[i] = p_.largest ? scores_[i] : -scores_[i];
  }

 private:
  const TopK& p_;
  const bool small_batch_;
  const A *const weight_ = static_cast<const A*>(p_.weight), bias_ = p_.bias ? *static_cast<const A*>(p_.bias) : 0;
  const E* query_row_;
  const A* query_;
  A *const acc_query_, *const scores_;
  BlockScorer<E> scorer_;
};

// The k best references of one query by their exact scores. Added rows wait until there are enough for one call of the
// scorer.
template <class E>
class TopRows {
  using A = Acc<E>;

 public:
  TopRows(Arena& arena, const TopK& problem, int64_t k, const Blocking& blocking)
      : scorer_(arena, problem, blocking), heap_{arena.take<ScoredRow<A>>(k), k, 0} {}
  TopRows(const TopRows&) = delete;

  static int64_t bytes(const TopK& problem, int64_t k, const Blocking& blocking) {
    Arena counted;
    TopRows(counted, problem, k, blocking);
    return counted.used();
  }

  // The largest blocking with which a TopRows fits into so many bytes, if there is one.
  static Blocking blocking_within(int64_t bytes, const TopK& problem, int64_t k) {
    if (ExactScorer<E>::is_small_batch(problem)) return {0, 0, problem.dim};
    return Blocking::largest({1, ExactScorer<E>::kMaxRows, problem.dim},
                             [&](const Blocking& blocking) { return TopRows::bytes(problem, k, blocking) <= bytes; });
  }

  void set_query(int64_t row) { scorer_.set_query(row); }

  void add(int64_t index) {
    waiting_[waiting_count_++] = index;
    if (waiting_count_ == ExactScorer<E>::kMaxRows) score_waiting();
  }

  const Heap<A>& heap() {
    score_waiting();
    return heap_;
  }

  // Writes the rows, best first, to the results of query `row`.
  void write(const TopK& p, int64_t row) {
    score_waiting();
    heap_.sort();
    write_best(p, row, heap_);
  }

 private:
  void score_waiting() {
    if (!waiting_count_) return;
    A scores[ExactScorer<E>::kMaxRows];
    scorer_.score(waiting_, waiting_count_, scores);
    for (int64_t i = 0; i < waiting_count_; ++i) heap_.offer({scores[i], waiting_[i]});
    waiting_count_ = 0;
  }

  ExactScorer<E> scorer_;
  Heap<A> heap_;
  int64_t waiting_[ExactScorer<E>::kMaxRows], waiting_count_ = 0;
};

}  // namespace
}  // namespace dissim
