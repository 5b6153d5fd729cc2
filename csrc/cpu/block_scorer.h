// The scores of some queries by some references for one head: packed once, scored block by block, dimension by
// dimension (E1) or, where that is faster, by maxima (E7). A score depends on its two rows, the weights and the bias
// alone, and not on how many rows or dimensions are packed at a time.
#pragma once

#include <type_traits>

#include "max_form.h"

namespace dissim {
namespace {

// References of a block of scores, whole panels of them: a word of bits for hinge.
constexpr int64_t kBlockColumns = 64;

// How much is packed at a time: queries, references and dimensions, which are all of them or, for one block of
// references at most, a multiple of kSlice.
struct Blocking {
  int64_t rows, columns, dims;

  // The largest below `all` that `fits`, for which fewer references come first, then fewer dimensions; the smallest
  // where none fits.
  template <class Fits>
  static Blocking largest(Blocking all, const Fits& fits) {
    const auto half = [](int64_t size, int64_t unit) { return max(unit, size / 2 / unit * unit); };
    while (all.columns > kBlockColumns && !fits(all)) all.columns = half(all.columns, kBlockColumns);
    while (all.dims > kSlice && !fits(all)) all.dims = half(all.dims, kSlice);
    return all;
  }
};

// Rows in panels [steps][width], `used` in each, and what E7 needs to know of them: see MaxForm::sum_rows.
template <class A, int width, int used = width>
class Panels {
 public:
  Panels(Arena& arena, int64_t rows, int64_t steps, int64_t slices)
      : steps_(steps),
        slices_(slices),
        values_(arena.take<A>(ceil_div(rows, used) * width * steps)),
        sums_(arena.take<A>(ceil_div(rows, used) * width * slices)),
        least_terms_(arena.take<A>(ceil_div(rows, used) * width)) {}

  A* values(int64_t row, int64_t step) const { return values_ + (row / used * steps_ + step) * width + row % used; }
  A* sums(int64_t row, int64_t slice) const { return sums_ + (row / used * slices_ + slice) * width + row % used; }
  A* least_terms(int64_t row) const { return least_terms_ + row / used * width + row % used; }

 private:
  const int64_t steps_, slices_;
  A *const values_, *const sums_, *const least_terms_;
};

template <class E>
class BlockScorer {
  using A = Acc<E>;
  static constexpr int panel = kPanel<A>, lanes = kLanes<A>;

 public:
  // For at most so many queries and references at a time. A multiple of a panel of references, or none of both.
  BlockScorer(Arena& arena, int64_t dim, const Blocking& blocking)
      : dim_(dim),
        steps_(blocking.dims),
        whole_(steps_ == dim),
        maxima_(dim >= kLeastMaxima),
        form_(arena, maxima_ ? dim : 0),
        query_(arena, blocking.rows, packed_steps(), packed_slices()),
        reference_(arena, blocking.columns, packed_steps(), packed_slices()),
        halves_size_((blocking.rows + kTileRows) * panel),
        positive_(arena.take<A>(maxima_ ? halves_size_ * panels_at_once() : 0)),
        negative_(arena.take<A>(maxima_ ? halves_size_ * panels_at_once() : 0)),
        again_(arena.take<A>(maxima_ && !whole_ ? (blocking.rows + kTileRows) * kBlockColumns : 0)) {}

  // Comes before the rows of either side, which have to follow for the first head and, where it `packs_by_head`, for
  // every other. Rows are read when they are set or when they are scored.
  void set_head(const A* weight, A bias) {
    weight_ = weight;
    bias_ = bias;
    if (maxima_) form_.set(weight);
  }
  bool packs_by_head() const { return maxima_; }

  void set_queries(const E* const* from, int64_t stride, int64_t rows) {
    queries_ = from;
    query_stride_ = stride;
    rows_ = rows;
    if (whole_) pack_queries(everything());
  }

  // `columns` references, from[j] and the last one again up to a whole panel.
  void set_references(const E* const* from, int64_t stride, int64_t columns) {
    references_ = from;
    reference_stride_ = stride;
    columns_ = columns;
    if (whole_) pack_references(everything());
  }

  // scores[i * kBlockColumns + j] of query i and reference first + j, as many as a block has. What follows up to a
  // whole tile is overwritten.
  void score(int64_t first, A* scores) {
    if (!whole_) return maxima_ ? score_maxima_by_ranges(scores) : score_by_ranges(scores);
    for (int64_t j = first; j < min(first + kBlockColumns, columns_); j += panel, scores += panel)
      half(j) ? score_panel<kTileVectors / 2>(j, scores) : score_panel<kTileVectors>(j, scores);
  }

 private:
  // Steps that are packed together, [first, last), which are of dimensions [begin, end). Without E7 a step is a
  // dimension.
  struct Range {
    int64_t first, last, begin, end;
    int64_t steps() const { return last - first; }
  };
  Range everything() const { return {0, dim_, 0, dim_}; }

  // One step more for the dimensions that lie between those of a range.
  int64_t packed_steps() const { return whole_ ? dim_ : steps_ + 1; }
  int64_t packed_slices() const { return !maxima_ ? 0 : whole_ ? form_.most_slices() : steps_ / form_.length() + 1; }
  int64_t panels_at_once() const { return whole_ ? 1 : kBlockColumns / panel; }

  // Whether half the vectors of the panel from j on hold what is left of the references.
  bool half(int64_t j) const { return columns_ - j <= panel / 2; }

  // Calls visit(vectors, j) for each panel.
  template <class Visit>
  void each_panel(const Visit& visit) const {
    for (int64_t j = 0; j < columns_; j += panel)
      half(j) ? visit(std::integral_constant<int, kTileVectors / 2>{}, j)
              : visit(std::integral_constant<int, kTileVectors>{}, j);
  }

  void pack_queries(const Range& range) {
    for (int64_t i = 0; i < rows_; i += kQueryRows) {
      const E* some[kQueryPanel];
      for (int64_t k = 0; k < kQueryPanel; ++k) some[k] = queries_[min(i + k, rows_ - 1)];
      pack<kQueryPanel / lanes>(range, some, query_stride_, query_, i);
    }
  }

  void pack_references(const Range& range) {
    each_panel(
        [&](auto vectors, int64_t j) { pack<vectors()>(range, references_ + j, reference_stride_, reference_, j); });
  }

  template <int vectors, int width, int used>
  void pack(const Range& range, const E* const* from, int64_t stride, const Panels<A, width, used>& to, int64_t row) {
    A* values = to.values(row, 0);
    const auto pack = [&](const auto& place) {
      pack_rows<E, width>(from, vectors * lanes, stride, range.begin, range.end, values, place);
    };
    if (!maxima_) return pack([&](int64_t d) { return d - range.begin; });
    if (whole_) {
      pack([&](int64_t d) { return form_.place(d); });
    } else {
      pack([&](int64_t d) {
        const uint64_t step = uint64_t(form_.place(d) - range.first), steps = uint64_t(range.steps());
        return int64_t(step < steps ? step : steps);
      });
    }
    form_.template sum_rows<vectors, width>(range.first, range.last, values, to.sums(row, 0), to.least_terms(row));
  }

  template <int vectors>
  void score_panel(int64_t j, A* scores) {
    if (maxima_) {
      for (int sign = 0; sign < 2; ++sign) add_steps<vectors>(sign, everything(), j, halves(sign, j));
      for (int64_t i = 0; i < rows_; i += kTileRows)
        if (!settle<vectors>(i, j, scores + i * kBlockColumns)) score_again<vectors>(i, j, scores + i * kBlockColumns);
    } else {
      add_dims<vectors>(everything(), j, scores);
    }
  }

  // E1 for some of the dimensions, slice by slice; once for no dimensions.
  template <int vectors>
  void add_dims(const Range& range, int64_t j, A* scores) {
    int64_t d = range.first;
    do {
      const int64_t end = min(d + kSlice, range.last);
      const A last = end == dim_ ? bias_ : A(0);
      for (int64_t i = 0; i < rows_; i += kTileRows)
        score_tile<A, vectors>(query_.values(i, d - range.first), d == 0, end - d,
                               reference_.values(j, d - range.first), weight_ + d, last, scores + i * kBlockColumns,
                               kBlockColumns);
      d = end;
    } while (d < range.last);
  }

  // E7 for those of the steps that have a sign of weight, of which there may be none:
  // halves[i * panel + j] (+)= their sum.
  template <int vectors>
  void add_steps(int sign, const Range& range, int64_t j, A* halves) {
    const auto tile = reads_in_place() ? max_tile<A, vectors, true> : max_tile<A, vectors, false>;
    const int64_t first_slice = form_.slice(range.first);
    const int64_t first = max(range.first, form_.begin(sign)), last = min(range.last, form_.end(sign));
    if (form_.begin(sign) == form_.end(sign))
      for (int64_t i = 0; i < ceil_div(rows_, kTileRows) * kTileRows; ++i)
        memset(halves + i * panel, 0, vectors * kVectorBytes);
    for (int64_t step = first; step < last; step += kSlice) {
      const int64_t at = step - range.first, slice = form_.slice(step) - first_slice;
      for (int64_t i = 0; i < rows_; i += kTileRows)
        tile(query_.values(i, at), query_.sums(i, slice), reference_.values(j, at), reference_.sums(j, slice),
             form_.weights(step), min(kSlice, last - step), form_.length(), step == form_.begin(sign),
             halves + i * panel);
    }
  }

  // A tile's scores from the halves of its two sums, and whether E7 answers for all of them.
  template <int vectors>
  bool settle(int64_t i, int64_t j, A* scores) {
    const A *positive = halves(0, j), *negative = halves(1, j);
    Integers<A> all = ~Integers<A>{};
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        all &= known(i, k, j, v);
        store<A>(scores + k * kBlockColumns + v * lanes, sum(positive, i + k, v) + sum(negative, i + k, v) + bias_);
      }
    return !bits<A>(~all);
  }

  // Those scores of a tile that E7 does not answer for, by E1.
  template <int vectors>
  void score_again(int64_t i, int64_t j, A* scores) {
    alignas(64) A again[kTileRows * panel];
    score_tile<A, vectors>(query_.values(i, 0), true, dim_, reference_.values(j, 0), form_.weights(0), bias_, again,
                           panel);
    mend<vectors>(i, j, again, panel, scores);
  }

  template <int vectors>
  void mend(int64_t i, int64_t j, const A* again, int64_t stride, A* scores) {
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * kBlockColumns + v * lanes;
        const Integers<A> kept = known(i, k, j, v);
        store<A>(at, where<A>(kept, load<A>(at)) + where<A>(~kept, load<A>(again + k * stride + v * lanes)));
      }
  }

  static Vector<A> sum(const A* halves, int64_t i, int v) { return 2 * load<A>(halves + i * panel + v * lanes); }

  // Whether E7 answers for the scores of query i + k, of i's tile, and the v-th vector of references from j on. There
  // is no product in it but by 2: it is the same to the last bit wherever it is compiled.
  Integers<A> known(int64_t i, int k, int64_t j, int v) const {
    const A tiny = A(dim_) * (sizeof(A) == 4 ? A(0x1p-126) : A(0x1p-1022)), infinite = A(__builtin_inf());
    const Vector<A> needed = query_.least_terms(i)[k] + load<A>(reference_.least_terms(j) + v * lanes);
    const Vector<A> spare = sum(halves(0, j), i + k, v) - sum(halves(1, j), i + k, v) - needed;
    return (spare >= tiny) & (spare < infinite);
  }

  // --- rows that are too long to be packed at once: range by range, in the same order of sums ------------------------

  template <class Visit>
  void each_range(const Visit& visit) {
    const auto pack_and_visit = [&](const Range& range) {
      pack_references(range);
      pack_queries(range);
      visit(range);
    };
    if (!maxima_)
      for (int64_t d = 0; d < dim_; d += steps_) {
        const int64_t end = min(d + steps_, dim_);
        pack_and_visit(Range{d, end, d, end});
      }
    for (int sign = 0; maxima_ && sign < 2; ++sign)
      for (int64_t step = form_.begin(sign); step < form_.end(sign); step += steps_) {
        const int64_t last = min(step + steps_, form_.end(sign));
        pack_and_visit(Range{step, last, form_.dim(step), form_.dim(last - 1) + 1});
      }
  }

  void score_by_ranges(A* scores) {
    each_range([&](const Range& range) {
      each_panel([&](auto vectors, int64_t j) { add_dims<vectors()>(range, j, scores + j); });
    });
  }

  void score_maxima_by_ranges(A* scores) {
    each_range([&](const Range& range) {
      each_panel([&](auto vectors, int64_t j) {
        for (int sign = 0; sign < 2; ++sign) add_steps<vectors()>(sign, range, j, halves(sign, j));
      });
    });
    bool all = true;
    each_tile([&](auto vectors, int64_t i, int64_t j, int64_t at) { all &= settle<vectors()>(i, j, scores + at); });
    if (all) return;
    each_range([&](const Range& range) {
      each_tile([&](auto vectors, int64_t i, int64_t j, int64_t at) {
        score_tile<A, vectors()>(query_.values(i, 0), !range.first, range.steps(), reference_.values(j, 0),
                                 form_.weights(range.first), range.last == dim_ ? bias_ : A(0), again_ + at,
                                 kBlockColumns);
      });
    });
    each_tile([&](auto vectors, int64_t i, int64_t j, int64_t at) {
      mend<vectors()>(i, j, again_ + at, kBlockColumns, scores + at);
    });
  }

  // Calls visit(vectors, i, j, place in a block's scores) for each tile of a block.
  template <class Visit>
  void each_tile(const Visit& visit) const {
    each_panel([&](auto vectors, int64_t j) {
      for (int64_t i = 0; i < rows_; i += kTileRows) visit(vectors, i, j, i * kBlockColumns + j);
    });
  }

  // Halves of a panel's sums of a sign of weight.
  A* halves(int sign, int64_t j) const {
    return (sign ? negative_ : positive_) + (whole_ ? 0 : j / panel * halves_size_);
  }

  const int64_t dim_, steps_;
  const bool whole_, maxima_;
  const A* weight_;
  A bias_;
  const E *const *queries_, *const *references_;
  int64_t query_stride_, reference_stride_, rows_, columns_;
  MaxForm<A> form_;
  Panels<A, kQueryPanel, kQueryRows> query_;
  Panels<A, panel> reference_;
  const int64_t halves_size_;
  A *const positive_, *const negative_, *const again_;
};

}  // namespace
}  // namespace dissim
