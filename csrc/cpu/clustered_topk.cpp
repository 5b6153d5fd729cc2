// clustered_topk: the k best references of each query, where the references are in clusters with a pivot each (E17).
// The score of a reference is at most that of its pivot plus the reference's radius plus the query's slack. References
// whose bound is below the query's k-th best score so far are not scored. The result is bit-identical to that of topk.
// A score outside its bounds shows that the clusters were made for other references.
//
// For a batch of queries:
//
//   score all pivots                                                                          score_pivots
//   for each query of a sample: score references of the clusters with the best pivots, best   search_nearest
//     first, until there are k
//   if most references may still be among the k best of these: plain top-k                    scan_all
//   for each query: more of these clusters                                                    search_nearest
//   for each chunk of a cluster: gather the queries with references there that may be         search_chunk
//     among their k best; score these references for all of them
//
// In a cluster the radii descend. So the references that may be among the k best of a query are the first ones. What is
// scored depends on thresholds from before the last step, so the numbers of scored references do not depend on timing.
#include <limits>

#include "kernels.h"
#include "topk_scan.h"

namespace dissim {
namespace {

// These sizes affect the speed only.
constexpr int64_t kMaxBatchQueries = 1024;  // queries that are searched together
constexpr int64_t kNearest = 8;  // pivots whose clusters are searched first
// A query alone takes about 30 times as long for a reference as one of many. So it may score this part of the
// references alone, which costs at most a fourth of a plain top-k. Few queries need so many to find k.
constexpr int64_t kNearestShare = 128;
// Queries that tell whether the bounds exclude enough. If they do not, what these scored was in vain.
constexpr int64_t kSampleQueries = 16;
constexpr int64_t kPlainShare = 2;  // plain top-k if more than 1 / kPlainShare of the references remain
template <class A>
constexpr int64_t kChunk = kMaxChunkColumns<A> / 2;  // references of a cluster that are scored together

// The part of a cluster that is scored at a time: a range of `order`.
struct Chunk {
  int64_t cluster, begin, end;
};

// The search for queries [first_query, first_query + queries), numbered from 0 in the members below.
template <class E>
class ClusterSearch {
  using A = Acc<E>;

 public:
  static void run(const ClusteredTopK& p, const Parallel& parallel) {
    const int64_t queries = p.topk.query.rows;
    // So many results that even the nearest clusters are too many rows.
    const bool plain = !p.topk.k || p.topk.k > p.topk.reference.rows / kNearestShare;
    const int64_t batch = plain ? queries : batch_queries(p);
    for (int64_t begin = 0, end; begin < queries; begin = end) {
      end = min(begin + batch, queries);
      plain ? scan_all(p, begin, end, parallel) : ClusterSearch(p, begin, end - begin).search(parallel);
    }
    for (int64_t n = 0; plain && n < queries; ++n) p.slack[n] = kInfinity;
  }

 private:
  // As many queries as have bounds and results in a quarter of the memory budget.
  static int64_t batch_queries(const ClusteredTopK& p) {
    const int64_t bytes = p.pivots.rows * int64_t(sizeof(A)) + (p.topk.k + kNearest) * int64_t(sizeof(ScoredRow<A>));
    return max(1, min(kMaxBatchQueries, memory_budget(p) / 4 / bytes));
  }

  static int64_t memory_budget(const ClusteredTopK& p) {
    return forward_memory_budget<E>(p.topk.query, p.topk.reference, p.topk.dim);
  }

  static void scan_all(const ClusteredTopK& p, int64_t begin, int64_t end, const Parallel& parallel) {
    TopKScan<E>::run(p.topk, begin, end, parallel);
    for (int64_t n = begin; n < end; ++n) p.scored[n] = p.topk.reference.rows;
  }

  ClusterSearch(const ClusteredTopK& problem, int64_t first_query, int64_t queries)
      : p_(problem),
        first_query_(first_query),
        queries_(queries),
        pivot_scores_(p_.pivots.rows * queries_),
        nearest_(queries_ * kNearest),
        next_nearest_(queries_),
        best_(queries_),
        best_rows_(queries_ * p_.topk.k),
        needed_(queries_),
        locks_(queries_),
        chunks_(p_.pivots.rows + ceil_div(p_.topk.reference.rows, kChunk<A>)) {
    for (int64_t i = 0; i < queries_; ++i) {
      best_[i] = {best_rows_ + i * p_.topk.k, p_.topk.k, 0};
      next_nearest_[i] = 0;
      needed_[i] = -kInfinity;
      locks_[i] = false;
      p_.scored[first_query_ + i] = 0;
    }
    for (int64_t c = 0; c < p_.pivots.rows; ++c) {
      const int64_t first = p_.offsets[c], end = p_.offsets[c + 1];
      for (int64_t begin = first; begin < end; begin += kChunk<A>)
        chunks_[num_chunks_++] = {c, begin, min(begin + kChunk<A>, end)};
      const bool valid = first == end || p_.radii[end - 1] >= 0;  // the smallest radius of the cluster
      if (!valid) set_invalid();
    }
  }

  void search(const Parallel& parallel) {
    score_pivots(parallel);
    const AllPairs<E> pairs = listed_pairs(nullptr, nullptr);
    const Blocking blocking = Scanner<E>::blocking(pairs, kPartition, parallel.threads);
    const int64_t bytes = Scanner<E>::bytes(pairs, kPartition, blocking) + scratch_bytes<int64_t>(queries_);
    const int64_t step = ceil_div(queries_, kSampleQueries), samples = ceil_div(queries_, step);
    int64_t remaining = 0;
    for_each_with(bytes, pairs.memory_budget, parallel, samples, [&](int64_t sample, Arena arena) {
      search_nearest(sample * step, true, arena, blocking);
      __atomic_fetch_add(&remaining, remaining_rows(sample * step), __ATOMIC_RELAXED);
    });
    if (kPlainShare * remaining > samples * p_.topk.reference.rows) {
      scan_all(p_, first_query_, first_query_ + queries_, parallel);
    } else {
      for_each_with(bytes, pairs.memory_budget, parallel, queries_,
                    [&](int64_t i, Arena arena) { search_nearest(i, false, arena, blocking); });
      for_each_with(bytes, pairs.memory_budget, parallel, num_chunks_,
                    [&](int64_t i, Arena arena) { search_chunk(chunks_[i], arena, blocking); });
      for_each(parallel, queries_, [&](int64_t i) {
        best_[i].sort();
        write_best(p_.topk, first_query_ + i, best_[i]);
      });
    }
    if (invalid_) p_.scored[0] = -1;
  }

  // --- bounds -------------------------------------------------------------------------------------------------------

  // All scores of pivots; the clusters with the best ones and the slack of each query.
  void score_pivots(const Parallel& parallel) {
    const int64_t heap_bytes = Selection<A>::bytes(kNearest);
    AllPairs<E> pairs{p_.topk.query, p_.pivots, 1, 1, p_.topk.dim, weight_, bias_};
    pairs.memory_budget = memory_budget(p_) / 4;
    pairs = pairs.query_range(first_query_, first_query_ + queries_, 0);
    const Partition partition =
        partition_work(pairs, parallel.threads, max(1, pairs.memory_budget / (queries_ * heap_bytes)));
    Selection<A> selection(first_query_, queries_, kNearest, p_.topk.largest, partition, Filter{});
    scan<E>(pairs, partition, parallel, [&](const ScoreBlock<A>& block) {
      selection.add(block);
      for (int64_t j = 0; j < block.columns; ++j)
        for (int64_t i = 0; i < block.rows; ++i) {
          // A score that is no finite number bounds nothing.
          const A score = sign_ * block[i][j];
          pivot_score(block.column + j, block.row + i - first_query_) = score - score == 0 ? score : A(kInfinity);
        }
    });
    for_each(parallel, queries_, [&](int64_t i) {
      const Heap<A> heap = selection.merge_parts(first_query_ + i);
      for (int64_t j = 0; j < kNearest; ++j) nearest_[i * kNearest + j] = j < heap.count ? heap.rows[j].index : -1;
      p_.slack[first_query_ + i] = query_slack(first_query_ + i);
    });
  }

  // The share of query n in the rounding errors (E17). Its size is summed in float64.
  double query_slack(int64_t n) const {
    using Limits = std::numeric_limits<A>;
    const E* const row = row_of<E>(p_.topk.query, 0, n);
    const A* const center = static_cast<const A*>(p_.center);
    double size = bias_ ? __builtin_fabs(double(*bias_)) : 0, weights = 0, largest = 0;
    for (int64_t d = 0; d < p_.topk.dim; ++d) {
      const double x = to_acc(row[d * p_.topk.query.dim_stride]), w = __builtin_fabs(double(weight_[d]));
      size += w * __builtin_fabs(x - double(center[d]));
      weights += w;
      largest = largest < __builtin_fabs(x) ? __builtin_fabs(x) : largest;
    }
    // A size that is NaN is not below the limit.
    if (!(size < double(Limits::max()) / 8) || largest > double(Limits::max()) / 4) return kInfinity;
    const double terms = double(p_.topk.dim + 16), roundings = terms * double(Limits::epsilon()) / 2;
    return 4 * roundings / (1 - roundings) * size + 2 * (weights + terms) * double(Limits::min());
  }

  // The score of a pivot; with the sign changed if the smallest are searched; NaN after its cluster was searched.
  A& pivot_score(int64_t cluster, int64_t i) { return pivot_scores_[cluster * queries_ + i]; }

  // Whether the reference at a place of `order` may be among the k best of query i (E17).
  bool may_be_best(int64_t i, int64_t cluster, int64_t place) {
    return double(pivot_score(cluster, i)) + p_.radii[place] >= needed_[i];
  }

  // Whether the scores of query i with the references at consecutive places of `order` are within their bounds (E17).
  // NaN is not within a bound, unless the bound is infinite.
  bool within_bounds(int64_t i, int64_t cluster, int64_t first_place, const A* scores, int64_t count) {
    const double pivot = pivot_score(cluster, i), slack = p_.slack[first_query_ + i];
    const double* const radii = p_.radii + first_place;
    bool within = true;
    for (int64_t j = 0; j < count; ++j) {
      const double bound = radii[j] + slack, difference = __builtin_fabs(double(sign_ * scores[j]) - pivot);
      within &= (difference <= bound) | (bound == kInfinity);
    }
    return within;
  }

  void set_invalid() { __atomic_store_n(&invalid_, true, __ATOMIC_RELAXED); }

  // Sets what a pivot's score and a radius have to reach for query i.
  void set_needed(int64_t i) {
    const double threshold = double(best_[i].threshold()), slack = p_.slack[first_query_ + i];
    if (threshold == threshold && slack < kInfinity) needed_[i] = threshold - slack;
  }

  // The number of the first places of a chunk for which any(place), which no place has after one that has it not.
  template <class Any>
  static int64_t first_places(const Chunk& chunk, const Any& any) {
    int64_t low = chunk.begin, high = chunk.end;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      any(middle) ? low = middle + 1 : high = middle;
    }
    return low - chunk.begin;
  }

  // How many references are not excluded for query i, rounded up to whole chunks.
  int64_t remaining_rows(int64_t i) {
    int64_t rows = 0;
    for (int64_t index = 0; index < num_chunks_; ++index) {
      const Chunk& chunk = chunks_[index];
      rows += may_be_best(i, chunk.cluster, chunk.begin) * (chunk.end - chunk.begin);
    }
    return rows;
  }

  // --- scores -------------------------------------------------------------------------------------------------------

  // The next clusters with the best pivots, each with the threshold that those before it gave.
  void search_nearest(int64_t i, bool until_full, const Arena& arena, const Blocking& blocking) {
    int64_t left = p_.topk.reference.rows / kNearestShare;
    for (int64_t& j = next_nearest_[i]; j < kNearest; ++j) {
      const int64_t cluster = nearest_[i * kNearest + j];
      if (cluster < 0 || (until_full && best_[i].count == best_[i].k)) return;
      const int64_t rows = p_.offsets[cluster + 1] - p_.offsets[cluster];
      if (rows > left) continue;
      left -= rows;
      for (int64_t begin = p_.offsets[cluster]; begin < p_.offsets[cluster + 1]; begin += kChunk<A>) {
        const Chunk chunk{cluster, begin, min(begin + kChunk<A>, p_.offsets[cluster + 1])};
        score(chunk, first_places(chunk, [&](int64_t place) { return may_be_best(i, cluster, place); }), &i, 1, arena,
              blocking);
        set_needed(i);
      }
      pivot_score(cluster, i) = A(__builtin_nan(""));
    }
  }

  void search_chunk(const Chunk& chunk, Arena arena, const Blocking& blocking) {
    int64_t* const queries = arena.take<int64_t>(queries_);
    int64_t count = 0;
    for (int64_t i = 0; i < queries_; ++i) {
      queries[count] = i;
      count += may_be_best(i, chunk.cluster, chunk.begin);
    }
    const int64_t rows = first_places(chunk, [&](int64_t place) {
      for (int64_t j = 0; j < count; ++j)
        if (may_be_best(queries[j], chunk.cluster, place)) return true;
      return false;
    });
    score(chunk, rows, queries, count, arena, blocking);
  }

  // Scores the first `rows` references of a chunk for some queries.
  void score(const Chunk& chunk, int64_t rows, const int64_t* queries, int64_t count, Arena arena,
             const Blocking& blocking) {
    const int64_t* order = p_.order + chunk.begin;
    bool valid = true;
    for (int64_t j = 0; j < rows; ++j) valid &= uint64_t(order[j]) < uint64_t(p_.topk.reference.rows);
    if (!valid) set_invalid();
    if (!valid || !rows || !count) return;
    const AllPairs<E> pairs = listed_pairs(queries, order);
    Scanner<E> scanner(arena, pairs, kPartition, blocking);
    scanner.scan(0, Task{0, 1, 0, count, 0, rows}, [&](const ScoreBlock<A>& block) {
      for (int64_t j = 0; j < block.rows; ++j) {
        const int64_t i = queries[block.row - first_query_ + j];
        if (!within_bounds(i, chunk.cluster, chunk.begin + block.column, block[j], block.columns)) set_invalid();
        while (__atomic_test_and_set(locks_ + i, __ATOMIC_ACQUIRE)) {
        }
        offer_scores<false>(best_[i], p_.topk.filter, sign_, first_query_ + i, block[j], block.columns,
                            [&](int64_t m) { return order[block.column + m]; });
        __atomic_clear(locks_ + i, __ATOMIC_RELEASE);
      }
    });
    for (int64_t j = 0; j < count; ++j)
      __atomic_fetch_add(p_.scored + first_query_ + queries[j], rows, __ATOMIC_RELAXED);
  }

  AllPairs<E> listed_pairs(const int64_t* queries, const int64_t* references) const {
    AllPairs<E> pairs{p_.topk.query, p_.topk.reference, 1, 1, p_.topk.dim, weight_, bias_};
    pairs.memory_budget /= 2;
    pairs = pairs.query_range(first_query_, first_query_ + queries_, 0);
    pairs.query_list = queries;
    pairs.reference_list = references;
    return pairs;
  }

  static constexpr double kInfinity = __builtin_inf();
  static constexpr Partition kPartition{kChunk<A>, 1, 1, 1, 1};  // of a chunk
  const ClusteredTopK& p_;
  const int64_t first_query_, queries_;
  const A *const weight_ = static_cast<const A*>(p_.topk.weight), *const bias_ = static_cast<const A*>(p_.topk.bias);
  const A sign_ = p_.topk.largest ? 1 : -1;
  Scratch<A> pivot_scores_;  // [clusters, queries]
  Scratch<int64_t> nearest_;  // [queries, kNearest]; -1: there are no more clusters
  Scratch<int64_t> next_nearest_;  // [queries], how many of them were searched
  Scratch<Heap<A>> best_;  // [queries]
  Scratch<ScoredRow<A>> best_rows_;
  Scratch<double> needed_;
  Scratch<bool> locks_;  // of each query's heap, while several threads score references for it
  Scratch<Chunk> chunks_;
  int64_t num_chunks_ = 0;
  bool invalid_ = false;  // whether a radius, a number of `order` or a score shows that the clusters are not valid
};

}  // namespace

namespace DISSIM_ISA {
void clustered_topk(const ClusteredTopK& problem, const Parallel& parallel) {
  dispatch<ClusterSearch>(problem.topk.dtype, problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
