// quantized_topk: the k best references of each query by a filter-and-refine search over codes (E10). A scan over the
// codes gives bounds of every score; only references whose upper bound reaches a threshold are scored exactly. The
// result is bit-identical to that of topk.
//
// S is the sum of the code differences of a pair, each with the sign of its weight. Up to a constant of the query it is
// the score in steps. The score of reference r is within e_r + e_q steps of it, with the error bounds e of both rows.
//
//   scan, part by part of the references, for each query q and reference r:
//     S = signed sum of code differences                                                        sad_tile
//     if S + e_r < threshold[q], or if the pair is excluded: next pair
//     keep the k largest lower bounds S - e_r of the part
//     raise threshold[q] to (k-th largest lower bound) - 2 e_q - slack                          raise_by_bounds
//     if the part's list of candidates is full:                                                 prune_list
//       score the k references with these lower bounds
//       raise threshold[q] to (k-th best of these scores, in steps) - e_q - slack               raise_by_scores
//       remove the candidates below the threshold
//       if the list is still nearly full: overflow; store no more candidates
//     store r and S + e_r in the list
//
//   refine, for each query q:
//     score the k references with the largest lower bounds of all parts; raise_by_scores
//     score the other candidates that reach the threshold; after an overflow, scan the references again to find them
//
// MATH.md ("The search") shows that every value of a threshold is valid. A threshold is only ever raised, so all
// threads share it, and the result does not depend on their timing.
#include "exact_scorer.h"
#include "kernels.h"
#include "processor.h"
#include "sad.h"

namespace dissim {
namespace {

// A register tile of codes is kSadRows queries, or kSadTailRows for the last few, by two vectors of references.
constexpr int kSadRows = kVectorBytes == 64 ? 8 : 4, kSadTailRows = 2;
constexpr int kSadColumns = kLanes<float>;

// Thresholds are limited to [kLowest, kMaxThreshold]: below every lower bound, and at most the upper bound of any row
// without a bound, so that such a row passes every threshold (MATH.md, "Range of the integers").
constexpr int32_t kLowest = -(1 << 30), kMaxThreshold = kUnbounded / 2;
// One step for the conversion of a threshold to int32, one for its rounding in double.
constexpr int32_t kThresholdSlack = 2;

// The list of candidates of one query in one part. These sizes affect the speed only.
constexpr int64_t kMinListCapacity = 2048, kListCapacityPerResult = 2;
constexpr int64_t kMaxListBytes = 32 << 20;  // lists and bounds of all queries that are scanned together
constexpr int64_t kMaxBatchQueries = 256;  // queries that are scanned together
constexpr int64_t kPartsPerThread = 2;
constexpr int64_t overflow_count(int64_t capacity) { return capacity / 4 * 3; }

using CodeSums = Integers<float>;

// sums[i] = S of query i and the kSadColumns references from `panel` on: the code differences of the first `positive`
// groups minus those of the others.
template <bool saturating, int rows>
DISSIM_INLINE void sad_tile(const uint8_t* const (&query)[rows], const uint8_t* panel, int64_t groups, int64_t positive,
                            CodeSums (&sums)[rows]) {
  SadSums total[rows][2] = {};
  for (int64_t sign = 1, g = 0; sign >= -1; sign -= 2) {
    const int64_t last = sign > 0 ? positive : groups;
    while (g < last) {
      const int64_t end = last - g > kMaxSadAdditions ? g + kMaxSadAdditions : last;
      SadPartial partial[rows][2] = {};
      for (; g < end; ++g) {
        const uint8_t* at = panel + g * kCodePanel * kCodeGroup;
        const Bytes first = load_bytes(at), second = load_bytes(at + kVectorBytes);
        for (int i = 0; i < rows; ++i) {
          const Bytes q = repeat_group(query[i] + g * kCodePanel * kCodeGroup);
          add_sad<saturating>(partial[i][0], q, first);
          add_sad<saturating>(partial[i][1], q, second);
        }
      }
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < 2; ++j)
          total[i][j] = sign > 0 ? total[i][j] + to_sad_sums(partial[i][j]) : total[i][j] - to_sad_sums(partial[i][j]);
    }
  }
  for (int i = 0; i < rows; ++i) sums[i] = narrow_sums(total[i][0], total[i][1]);
}

struct StoredCandidate {
  uint32_t index;
  int32_t upper_bound;  // S + e_r
};

// What the scan of one part of the references keeps for one query.
struct PartCandidates {
  Heap<double> lower_bounds;  // the k largest S - e_r
  StoredCandidate* stored;
  int64_t count;
  bool overflow;  // there were too many to be stored
};

// The search for a batch of queries [first_query, first_query + queries), numbered from 0 in the members below.
template <class E>
class QuantizedScan {
  using A = Acc<E>;

 public:
  static void run(const QuantizedTopK& p, const Parallel& parallel) {
    const int64_t k = min(p.topk.k, p.topk.reference.rows), panels = ceil_div(p.topk.reference.rows, kCodePanel);
    const int64_t list_capacity = kMinListCapacity + kListCapacityPerResult * k;
    const int64_t list_bytes =
        int64_t(sizeof(PartCandidates) + k * sizeof(ScoredRow<double>) + list_capacity * sizeof(StoredCandidate));
    const int64_t parts = max(1, min(min(kPartsPerThread * parallel.threads, panels), kMaxListBytes / list_bytes));
    const int64_t batch = max(1, min(kMaxBatchQueries, kMaxListBytes / (parts * list_bytes)));
    for (int64_t begin = 0; begin < p.topk.query.rows; begin += batch)
      QuantizedScan(p, k, list_capacity, parts, begin, min(batch, p.topk.query.rows - begin)).search(parallel);
  }

 private:
  QuantizedScan(const QuantizedTopK& problem, int64_t k, int64_t list_capacity, int64_t parts, int64_t first_query,
                int64_t queries)
      : p_(problem),
        k_(k),
        list_capacity_(list_capacity),
        parts_(parts),
        first_query_(first_query),
        queries_(queries),
        panels_(ceil_div(p_.topk.reference.rows, kCodePanel)),
        negate_mask_(p_.topk.largest ? 0 : -1),
        candidates_(parts_ * queries_),
        lower_bounds_(parts_ * queries_ * k_),
        stored_(parts_ * queries_ * list_capacity_),
        thresholds_(queries_) {
    for (int64_t i = 0; i < parts_ * queries_; ++i)
      candidates_[i] = {{lower_bounds_ + i * k_, k_, 0}, stored_ + i * list_capacity_, 0, false};
    for (int64_t i = 0; i < queries_; ++i) thresholds_[i] = kLowest;
  }

  void search(const Parallel& parallel) {
    const int64_t memory_budget = forward_memory_budget<E>(p_.topk.query, p_.topk.reference, p_.topk.dim);
    const Blocking blocking = TopRows<E>::blocking_within(memory_budget / parallel.threads, p_.topk, k_);
    const int64_t bytes = TopRows<E>::bytes(p_.topk, k_, blocking);
    const auto make_top_rows = [&](Arena arena) { return TopRows<E>(arena, p_.topk, k_, blocking); };
    if (k_)
      for_each_with(bytes, memory_budget, parallel, parts_,
                    [&](int64_t part, Arena arena) { scan_part(part, [&] { return make_top_rows(arena); }); });
    for_each_with(bytes, memory_budget, parallel, queries_,
                  [&](int64_t i, Arena arena) { refine(i, make_top_rows(arena)); });
  }

  // --- scan ---------------------------------------------------------------------------------------------------------

  // Calls visit(i, m, S) for every query i of [begin, end) and every reference m of some panels that reaches the
  // query's threshold and is not excluded.
  template <class Visit>
  void scan_panels(int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, const Visit& visit) {
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      int64_t i = begin;
      for (; end - i > 2 * kSadTailRows; i += kSadRows) scan_tile<kSadRows>(i, end, panel, visit);
      for (; i < end; i += kSadTailRows) scan_tile<kSadTailRows>(i, end, panel, visit);
    }
  }

  // The codes of a row: kCodeGroup bytes, and every further group kCodePanel * kCodeGroup bytes behind the one before.
  const uint8_t* codes_of(const uint8_t* codes, int64_t row) const {
    const int64_t panel_bytes = p_.groups * kCodePanel * kCodeGroup;
    return codes + row / kCodePanel * panel_bytes + row % kCodePanel * kCodeGroup;
  }

  template <int tile, class Visit>
  void scan_tile(int64_t i, int64_t end, int64_t panel, const Visit& visit) {
    const uint8_t* query[tile];
    for (int j = 0; j < tile; ++j) query[j] = codes_of(p_.query_codes, first_query_ + min(i + j, end - 1));
    for (int column = 0; column < kCodePanel; column += kSadColumns) {
      const int64_t m = panel * kCodePanel + column;
      CodeSums sums[tile], errors;
      const uint8_t* codes = codes_of(p_.reference_codes, m);
      saturating_ ? sad_tile<true>(query, codes, p_.groups, *p_.positive, sums)
                  : sad_tile<false>(query, codes, p_.groups, *p_.positive, sums);
      memcpy(&errors, p_.reference_errors + m, sizeof errors);
      for (int j = 0; j < min(tile, end - i); ++j) {
        const CodeSums s = (sums[j] ^ negate_mask_) - negate_mask_;
        uint32_t passed = bits<float>(s + errors >= threshold(i + j));
        if (p_.topk.reference.rows - m < kSadColumns) passed &= (1u << max(0, p_.topk.reference.rows - m)) - 1;
        for (; passed; passed &= passed - 1) {
          const int lane = __builtin_ctz(passed);
          if (is_candidate(p_.topk.filter, first_query_ + i + j, m + lane)) visit(i + j, m + lane, s[lane]);
        }
      }
    }
  }

  template <class MakeTopRows>
  void scan_part(int64_t part, const MakeTopRows& make_top_rows) {
    const int64_t panel_begin = part * panels_ / parts_, panel_end = (part + 1) * panels_ / parts_;
    scan_panels(0, queries_, panel_begin, panel_end, [&](int64_t i, int64_t m, int32_t sum) {
      add_candidate(i, m, sum, candidates_[part * queries_ + i], make_top_rows);
    });
  }

  // Not inlined: few references get here, and the loop of sad_tile needs every register.
  template <class MakeTopRows>
  __attribute__((noinline)) void add_candidate(int64_t i, int64_t m, int32_t sum, PartCandidates& candidates,
                                               const MakeTopRows& make_top_rows) {
    candidates.lower_bounds.offer({double(sum - p_.reference_errors[m]), m});
    raise_by_bounds(i, candidates.lower_bounds);
    if (candidates.overflow) return;
    if (candidates.count == list_capacity_) prune_list(i, candidates, make_top_rows);
    if (!candidates.overflow) candidates.stored[candidates.count++] = {uint32_t(m), sum + p_.reference_errors[m]};
  }

  // Raises the threshold of query i by exact scores and removes the candidates of a full list that are below it.
  template <class MakeTopRows>
  void prune_list(int64_t i, PartCandidates& candidates, const MakeTopRows& make_top_rows) {
    TopRows<E> top = make_top_rows();
    top.set_query(first_query_ + i);
    for (int64_t j = 0; j < candidates.lower_bounds.count; ++j) top.add(candidates.lower_bounds.rows[j].index);
    raise_by_scores(i, top.heap());
    int64_t left = 0;
    for (int64_t j = 0; j < list_capacity_; ++j)
      if (candidates.stored[j].upper_bound >= threshold(i)) candidates.stored[left++] = candidates.stored[j];
    candidates.count = left;
    candidates.overflow = left > overflow_count(list_capacity_);
  }

  // --- thresholds ---------------------------------------------------------------------------------------------------

  int32_t threshold(int64_t i) const { return __atomic_load_n(thresholds_ + i, __ATOMIC_RELAXED); }

  void raise_threshold(int64_t i, double to) {
    const int32_t limited = to < kMaxThreshold ? (to > kLowest ? int32_t(to) : kLowest) : kMaxThreshold;
    int32_t current = threshold(i);
    while (current < limited &&
           !__atomic_compare_exchange_n(thresholds_ + i, &current, limited, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  void raise_by_bounds(int64_t i, const Heap<double>& lower_bounds) {
    if (lower_bounds.count == k_)
      raise_threshold(i, lower_bounds.rows[0].score - 2.0 * p_.query_errors[first_query_ + i] - kThresholdSlack);
  }

  void raise_by_scores(int64_t i, const Heap<A>& best) {
    const int32_t error = p_.query_errors[first_query_ + i];
    if (best.count < k_ || error == kUnbounded || best.rows[0].score != best.rows[0].score) return;
    const double base = p_.topk.largest ? p_.query_bases[first_query_ + i] : -p_.query_bases[first_query_ + i];
    raise_threshold(i, (double(best.rows[0].score) - base) / *p_.step - error - kThresholdSlack);
  }

  // --- refine -------------------------------------------------------------------------------------------------------

  void refine(int64_t i, TopRows<E> top) {
    top.set_query(first_query_ + i);
    const bool overflow = k_ && any_overflow(i);
    const Heap<double>& best_bounds = merge_lower_bounds(i);
    for (int64_t j = 0; k_ && j < best_bounds.count; ++j) top.add(best_bounds.rows[j].index);
    if (k_ && best_bounds.count == k_) raise_by_scores(i, top.heap());
    for_each_candidate(i, overflow, [&](int64_t m, int32_t sum) {
      const ScoredRow<double> bound{double(sum - p_.reference_errors[m]), m}, worst = best_bounds.rows[0];
      const bool already_added = bound.is_better_than(worst) || m == worst.index;
      if (!already_added) top.add(m);
    });
    if (k_) raise_by_scores(i, top.heap());
    int64_t& rescored = p_.rescored[first_query_ + i] = 0;
    for_each_candidate(i, overflow, [&](int64_t, int32_t) { ++rescored; });
    top.write(p_.topk, first_query_ + i);
  }

  bool any_overflow(int64_t i) const {
    bool overflow = false;
    for (int64_t part = 0; part < parts_; ++part) overflow |= candidates_[part * queries_ + i].overflow;
    return overflow;
  }

  // The k largest lower bounds of all parts, in the heap of the first.
  const Heap<double>& merge_lower_bounds(int64_t i) {
    Heap<double>& merged = candidates_[i].lower_bounds;
    for (int64_t part = 1; k_ && part < parts_; ++part) {
      const Heap<double>& other = candidates_[part * queries_ + i].lower_bounds;
      for (int64_t j = 0; j < other.count; ++j) merged.offer(other.rows[j]);
    }
    return merged;
  }

  // Calls visit(m, S) for the references that reach the threshold of query i.
  template <class Visit>
  void for_each_candidate(int64_t i, bool overflow, const Visit& visit) {
    if (overflow) return scan_panels(i, i + 1, 0, panels_, [&](int64_t, int64_t m, int32_t sum) { visit(m, sum); });
    for (int64_t part = 0; k_ && part < parts_; ++part) {
      const PartCandidates& candidates = candidates_[part * queries_ + i];
      for (int64_t j = 0; j < candidates.count; ++j) {
        const StoredCandidate& candidate = candidates.stored[j];
        if (candidate.upper_bound >= threshold(i))
          visit(candidate.index, candidate.upper_bound - p_.reference_errors[candidate.index]);
      }
    }
  }

  const QuantizedTopK& p_;
  const int64_t k_, list_capacity_, parts_, first_query_, queries_, panels_;
  const int32_t negate_mask_;  // -1 to change the sign of S: the smallest scores are the largest of their negatives
  const bool saturating_ = prefers_saturating_add();
  Scratch<PartCandidates> candidates_;  // [parts][queries]
  Scratch<ScoredRow<double>> lower_bounds_;
  Scratch<StoredCandidate> stored_;
  Scratch<int32_t> thresholds_;  // [queries]
};

}  // namespace

namespace DISSIM_ISA {
void quantized_topk(const QuantizedTopK& problem, const Parallel& parallel) {
  dispatch<QuantizedScan>(problem.topk.dtype, problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
