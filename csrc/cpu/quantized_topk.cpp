// quantized_topk: the k best references by way of a scan over codes (E10). S, the sum of code differences with the sign
// of the weights, is a score in steps but for what its query adds to all; the score of reference m lies within
// errors[m] + query_errors[n] of it. Whoever cannot reach the k-th best score known so far, or the k-th best lower
// bound, is none of the k best. The others are scored as topk scores them, so that indices and scores are the same
// bits.
#include "kernels.h"
#include "processor.h"
#include "sad.h"
#include "select.h"

namespace dissim {
namespace {

// A register tile of codes: queries, many or the last few, by two vectors of references.
constexpr int kSadRows = kVectorBytes == 64 ? 8 : 4, kFewSadRows = 2;
constexpr int kSadColumns = kLanes<float>;
constexpr int32_t kLowest = -(1 << 30);  // below every bound

using Steps = Integers<float>;

// steps[i] = sum of code differences of query i and the references from `panel` on, positive groups minus the others.
template <bool saturating, int rows>
DISSIM_INLINE void sad_tile(const uint8_t* const (&query)[rows], const uint8_t* panel, int64_t groups, int64_t positive,
                            Steps (&steps)[rows]) {
  Sums sums[rows][2] = {};
  for (int64_t sign = 1, g = 0; sign >= -1; sign -= 2) {
    const int64_t last = sign > 0 ? positive : groups;
    while (g < last) {
      const int64_t end = last - g > kSadSteps ? g + kSadSteps : last;
      Partial partial[rows][2] = {};
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
          sums[i][j] = sign > 0 ? sums[i][j] + total(partial[i][j]) : sums[i][j] - total(partial[i][j]);
    }
  }
  for (int i = 0; i < rows; ++i) steps[i] = narrow_sums(sums[i][0], sums[i][1]);
}

constexpr int64_t kMostCandidates = 32 << 20;  // bytes of candidates of all queries that are scanned together
constexpr int64_t kMostRows = 256;

struct Kept {
  uint32_t index;
  int32_t upper;
};

// What one part of the references offers one query: its k best lower bounds, and the candidates that passed so far.
struct Offers {
  Heap<double> lower;
  Kept* kept;
  int64_t count;
  bool overflow;  // more passed than there is room for: the query's references are scanned again
};

// Scores a few references for one query with the kernels and the order of sums of topk.
template <class E>
class Scorer {
  using A = Acc<E>;

 public:
  static constexpr int64_t kMost = kPanel<A>;

  Scorer(Arena& arena, const TopK& problem, const Blocking& blocking)
      : p_(problem),
        few_(is_few(p_)),
        wide_(arena.take<A>(few_ ? p_.dim : 0)),
        scores_(arena.take<A>(kTileRows * kBlockColumns)),
        scorer_(arena, p_.dim, blocking) {}

  static bool is_few(const TopK& problem) { return problem.query.rows <= kFewRows; }

  void set_query(int64_t row) {
    from_ = row_of<E>(p_.query, 0, row);
    if (few_) {
      query_ = acc_row<E>(p_.query, 0, row, 0, p_.dim, wide_);
    } else {
      scorer_.set_head(weight_, bias_);
      scorer_.set_queries(&from_, p_.query.dim_stride, 1);
    }
  }

  // The scores of references all[i], i < count <= kMost, negated where the least are sought.
  void score(const int64_t* all, int64_t count, A* scores) {
    const E* from[kMost];
    for (int64_t i = 0; i < kMost; ++i) from[i] = row_of<E>(p_.reference, 0, all[min(i, count - 1)]);
    if (few_) {
      constexpr int64_t group = kRowGroup<A>;
      for (int64_t i = 0; i < count; i += group)
        score_rows<E, 1>(&query_, from + i, p_.reference.dim_stride, 0, weight_, bias_, p_.dim, scores_ + i, kMost);
    } else {
      scorer_.set_references(from, p_.reference.dim_stride, count);
      scorer_.score(0, scores_);
    }
    for (int64_t i = 0; i < count; ++i) scores[i] = p_.largest ? scores_[i] : -scores_[i];
  }

 private:
  const TopK& p_;
  const bool few_;
  const A *const weight_ = static_cast<const A*>(p_.weight), bias_ = p_.bias ? *static_cast<const A*>(p_.bias) : 0;
  const E* from_;
  const A* query_;
  A *const wide_, *const scores_;
  BlockScorer<E> scorer_;
};

// One query's k best references by their scores.
template <class E>
class Best {
  using A = Acc<E>;

 public:
  Best(Arena& arena, const TopK& problem, int64_t k, const Blocking& blocking)
      : scorer_(arena, problem, blocking), heap_{arena.take<Candidate<A>>(k), k, 0} {}

  static int64_t bytes(const TopK& problem, int64_t k, const Blocking& blocking) {
    Arena counted;
    Best(counted, problem, k, blocking);
    return counted.used();
  }

  Best(const Best&) = delete;

  void set_query(int64_t row) { scorer_.set_query(row); }

  void take(int64_t m) {
    waiting_[count_++] = m;
    if (count_ == Scorer<E>::kMost) score();
  }

  const Heap<A>& heap() {
    score();
    return heap_;
  }

  void write(const TopK& p, int64_t row) {
    score();
    heap_.sort();
    A* scores = static_cast<A*>(p.scores) + row * p.k;
    int64_t* indices = p.indices + row * p.k;
    for (int64_t i = 0; i < p.k; ++i) {
      const bool found = i < heap_.count;
      scores[i] = !found ? A(__builtin_nan("")) : p.largest ? heap_.all[i].score : -heap_.all[i].score;
      indices[i] = found ? heap_.all[i].index : -1;
    }
  }

 private:
  void score() {
    if (!count_) return;
    A scores[Scorer<E>::kMost];
    scorer_.score(waiting_, count_, scores);
    for (int64_t i = 0; i < count_; ++i) heap_.offer({scores[i], waiting_[i]});
    count_ = 0;
  }

  Scorer<E> scorer_;
  Heap<A> heap_;
  int64_t waiting_[Scorer<E>::kMost], count_ = 0;
};

template <class E>
class Search {
  using A = Acc<E>;

 public:
  static void run(const QuantizedTopK& p, const Parallel& parallel) {
    const int64_t k = min(p.topk.k, p.topk.reference.rows), panels = ceil_div(p.topk.reference.rows, kCodePanel);
    const int64_t room = 2048 + 2 * k;
    const int64_t bytes = int64_t(sizeof(Offers) + k * sizeof(Candidate<double>) + room * sizeof(Kept));
    const int64_t parts = max(1, min(min(2 * parallel.threads, panels), kMostCandidates / bytes));
    const int64_t rows = max(1, min(kMostRows, kMostCandidates / (parts * bytes)));
    for (int64_t begin = 0; begin < p.topk.query.rows; begin += rows)
      Search(p, k, room, parts, begin, min(rows, p.topk.query.rows - begin)).search(parallel);
  }

 private:
  Search(const QuantizedTopK& problem, int64_t best, int64_t most_kept, int64_t cuts, int64_t begin, int64_t count)
      : p(problem),
        k(best),
        room(most_kept),
        parts(cuts),
        first(begin),
        rows(count),
        panels(ceil_div(p.topk.reference.rows, kCodePanel)),
        flip(p.topk.largest ? 0 : -1),
        filter{p.topk.exclude_index, p.topk.query_labels, p.topk.reference_labels},
        offers(parts * rows),
        lower(parts * rows * k),
        kept(parts * rows * room),
        thresholds(rows) {
    for (int64_t i = 0; i < parts * rows; ++i) offers[i] = {{lower + i * k, k, 0}, kept + i * room, 0, false};
    for (int64_t i = 0; i < rows; ++i) thresholds[i] = kLowest;
  }

  void search(const Parallel& parallel) {
    const int64_t spare = forward_room<E>(p.topk.query, p.topk.reference, p.topk.dim);
    const Blocking blocking = blocking_within(spare / parallel.threads);
    const int64_t bytes = Best<E>::bytes(p.topk, k, blocking);
    const auto best = [&](Arena arena) { return Best<E>(arena, p.topk, k, blocking); };
    if (k)
      for_each_with(bytes, spare, parallel, parts,
                    [&](int64_t part, Arena arena) { scan_part(part, [&] { return best(arena); }); });
    for_each_with(bytes, spare, parallel, rows, [&](int64_t i, Arena arena) { finish(i, best(arena)); });
  }

  Blocking blocking_within(int64_t bytes) const {
    if (Scorer<E>::is_few(p.topk)) return {0, 0, p.topk.dim};
    return Blocking::largest({1, Scorer<E>::kMost, p.topk.dim},
                             [&](const Blocking& b) { return Best<E>::bytes(p.topk, k, b) <= bytes; });
  }

  // Calls visit(i, m, S) for every query i of [begin, end) of the batch and every reference whose upper bound, the
  // query's own error left out, is not below the query's threshold.
  template <class Visit>
  void scan_panels(int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, const Visit& visit) {
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      int64_t i = begin;
      for (; end - i > 2 * kFewSadRows; i += kSadRows) scan_tile<kSadRows>(i, end, panel, visit);
      for (; i < end; i += kFewSadRows) scan_tile<kFewSadRows>(i, end, panel, visit);
    }
  }

  template <int tile, class Visit>
  void scan_tile(int64_t i, int64_t end, int64_t panel, const Visit& visit) {
    const int64_t bytes = p.groups * kCodeGroup;
    const uint8_t* query[tile];
    for (int j = 0; j < tile; ++j) {
      const int64_t n = first + min(i + j, end - 1);
      query[j] = p.query_codes + n / kCodePanel * kCodePanel * bytes + n % kCodePanel * kCodeGroup;
    }
    for (int column = 0; column < kCodePanel; column += kSadColumns) {
      const int64_t m = panel * kCodePanel + column;
      Steps sums[tile], errors;
      const uint8_t* codes = p.reference_codes + panel * kCodePanel * bytes + column * kCodeGroup;
      saturating ? sad_tile<true>(query, codes, p.groups, *p.positive, sums)
                 : sad_tile<false>(query, codes, p.groups, *p.positive, sums);
      memcpy(&errors, p.reference_errors + m, sizeof errors);
      for (int j = 0; j < min(tile, end - i); ++j) {
        const Steps s = (sums[j] ^ flip) - flip;
        uint32_t passed = bits<float>(s + errors >= threshold(i + j));
        if (p.topk.reference.rows - m < kSadColumns) passed &= (1u << max(0, p.topk.reference.rows - m)) - 1;
        for (; passed; passed &= passed - 1) {
          const int lane = __builtin_ctz(passed);
          if (!filter.bars(first + i + j, m + lane)) visit(i + j, m + lane, s[lane]);
        }
      }
    }
  }

  template <class Make>
  void scan_part(int64_t part, const Make& make_best) {
    scan_panels(0, rows, part * panels / parts, (part + 1) * panels / parts, [&](int64_t i, int64_t m, int32_t sum) {
      Offers& offer = offers[part * rows + i];
      offer.lower.offer({double(sum - p.reference_errors[m]), m});
      raise_by_bounds(i, offer.lower);
      if (offer.overflow) return;
      if (offer.count == room) {  // sharpen the threshold and let go of those below it
        Best<E> best = make_best();
        best.set_query(first + i);
        for (int64_t j = 0; j < offer.lower.count; ++j) best.take(offer.lower.all[j].index);
        raise_by_scores(i, best.heap());
        int64_t left = 0;
        for (int64_t j = 0; j < room; ++j)
          if (offer.kept[j].upper >= threshold(i)) offer.kept[left++] = offer.kept[j];
        offer.count = left;
        offer.overflow = left > room / 4 * 3;
      }
      if (!offer.overflow) offer.kept[offer.count++] = {uint32_t(m), sum + p.reference_errors[m]};
    });
  }

  // Thresholds only ever rise and each of their values is right, whoever found it, so all parts share them.
  int32_t threshold(int64_t i) const { return __atomic_load_n(thresholds + i, __ATOMIC_RELAXED); }
  void raise(int64_t i, double to) {
    // Above every bound but those of the unbounded, which must pass.
    const int32_t limited = to < kUnbounded / 2 ? (to > kLowest ? int32_t(to) : kLowest) : kUnbounded / 2;
    int32_t now = threshold(i);
    while (now < limited &&
           !__atomic_compare_exchange_n(thresholds + i, &now, limited, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  void raise_by_bounds(int64_t i, const Heap<double>& heap) {
    if (heap.count == k) raise(i, heap.all[0].score - 2.0 * p.query_errors[first + i] - 2);
  }
  void raise_by_scores(int64_t i, const Heap<A>& heap) {
    if (heap.count < k || p.query_errors[first + i] == kUnbounded || heap.all[0].score != heap.all[0].score) return;
    const double base = p.topk.largest ? p.query_bases[first + i] : -p.query_bases[first + i];
    const double steps = (double(heap.all[0].score) - base) / *p.step - p.query_errors[first + i] - 2;
    raise(i, steps);
  }

  // The best of all parts by their bounds are scored first; with the k-th of their scores as threshold, the others.
  void finish(int64_t i, Best<E> best) {
    best.set_query(first + i);
    Heap<double>& chosen = offers[i].lower;
    bool overflow = false;
    for (int64_t part = 0; k && part < parts; ++part) {
      const Offers& offer = offers[part * rows + i];
      overflow |= offer.overflow;
      for (int64_t j = 0; part && j < offer.lower.count; ++j) chosen.offer(offer.lower.all[j]);
    }
    for (int64_t j = 0; k && j < chosen.count; ++j) best.take(chosen.all[j].index);
    if (k && chosen.count == k) raise_by_scores(i, best.heap());
    each_kept(i, overflow, [&](int64_t m, int32_t sum) {
      if (Candidate<double>{double(sum - p.reference_errors[m]), m}.beats(chosen.all[0]) || m == chosen.all[0].index)
        return;
      best.take(m);
    });
    if (k) raise_by_scores(i, best.heap());
    int64_t& rescored = p.rescored[first + i] = 0;
    each_kept(i, overflow, [&](int64_t, int32_t) { ++rescored; });
    best.write(p.topk, first + i);
  }

  // Calls visit(m, S) for the candidates of a query that pass its threshold.
  template <class Visit>
  void each_kept(int64_t i, bool overflow, const Visit& visit) {
    if (overflow) return scan_panels(i, i + 1, 0, panels, [&](int64_t, int64_t m, int32_t sum) { visit(m, sum); });
    for (int64_t part = 0; k && part < parts; ++part) {
      const Offers& offer = offers[part * rows + i];
      for (int64_t j = 0; j < offer.count; ++j)
        if (offer.kept[j].upper >= threshold(i))
          visit(offer.kept[j].index, offer.kept[j].upper - p.reference_errors[offer.kept[j].index]);
    }
  }

  const QuantizedTopK& p;
  const int64_t k, room, parts, first, rows, panels;
  const int32_t flip;
  const Filter filter;
  const bool saturating = adds_saturating();
  Scratch<Offers> offers;
  Scratch<Candidate<double>> lower;
  Scratch<Kept> kept;
  Scratch<int32_t> thresholds;
};

}  // namespace

namespace DISSIM_ISA {
void quantized_topk(const QuantizedTopK& problem, const Parallel& parallel) {
  switch (problem.topk.dtype) {
    case Dtype::float16: return Search<Half>::run(problem, parallel);
    case Dtype::bfloat16: return Search<BFloat>::run(problem, parallel);
    case Dtype::float32: return Search<float>::run(problem, parallel);
    case Dtype::float64: return Search<double>::run(problem, parallel);
  }
}
}  // namespace DISSIM_ISA
}  // namespace dissim
