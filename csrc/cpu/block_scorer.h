// The scores of some queries by some references for one head: packed once, scored block by block, dimension by
// dimension (E1) or, where that is faster, by maxima (E7). A score depends on its two rows, the weights and the bias
// alone.
#pragma once

#include "max_form.h"

namespace dissim {
namespace {

// References of a block of scores, whole panels of them: a word of bits for hinge.
constexpr int64_t kBlockColumns = 64;

// Rows in panels [dim][width], `used` in each, and what E7 needs to know of them: see MaxForm::sum_rows.
template <class A, int width, int used = width>
class Panels {
 public:
  Panels(int64_t rows, int64_t dim, int64_t slices)
      : dim_(dim),
        slices_(slices),
        values_(blocks_of(rows, used) * width * dim),
        sums_(blocks_of(rows, used) * width * slices),
        least_terms_(blocks_of(rows, used) * width) {}

  A* values(int64_t row, int64_t step) const { return values_ + (row / used * dim_ + step) * width + row % used; }
  A* sums(int64_t row, int64_t slice) const { return sums_ + (row / used * slices_ + slice) * width + row % used; }
  A* least_terms(int64_t row) const { return least_terms_ + row / used * width + row % used; }

 private:
  const int64_t dim_, slices_;
  Scratch<A> values_, sums_, least_terms_;
};

template <class E>
class BlockScorer {
  using A = Wide<E>;
  static constexpr int panel = kPanel<A>, lanes = kLanes<A>;

 public:
  // For at most `rows` queries and `columns` references at a time, a multiple of a panel.
  BlockScorer(int64_t dim, int64_t rows, int64_t columns)
      : dim_(dim),
        maxima_(dim >= kLeastMaxima),
        form_(maxima_ ? dim : 0),
        query_(rows, dim, form_.most_slices()),
        reference_(columns, dim, form_.most_slices()),
        positive_(maxima_ ? (rows + kTileRows) * panel : 0),
        negative_(maxima_ ? (rows + kTileRows) * panel : 0) {}

  // Comes before the rows of either side, which have to follow for the first head and, where it `packs_by_head`, for
  // every other.
  void set_head(const A* weight, A bias) {
    weight_ = weight;
    bias_ = bias;
    if (maxima_) form_.set(weight);
  }
  bool packs_by_head() const { return maxima_; }

  void set_queries(const E* const* from, int64_t stride, int64_t rows) {
    rows_ = rows;
    for (int64_t i = 0; i < rows; i += kQueryRows) {
      const E* some[kQueryPanel];
      for (int64_t k = 0; k < kQueryPanel; ++k) some[k] = from[least(i + k, rows - 1)];
      pack<kQueryPanel / lanes>(some, stride, query_, i);
    }
  }

  // `columns` references, from[j] and the last one again up to a whole panel.
  void set_references(const E* const* from, int64_t stride, int64_t columns) {
    columns_ = columns;
    for (int64_t j = 0; j < columns; j += panel)
      half(j) ? pack<kTileVectors / 2>(from + j, stride, reference_, j)
              : pack<kTileVectors>(from + j, stride, reference_, j);
  }

  // scores[i * kBlockColumns + j] of query i and reference first + j, as many as a block has. What follows up to a
  // whole tile is overwritten.
  void score(int64_t first, A* scores) {
    for (int64_t j = first; j < least(first + kBlockColumns, columns_); j += panel, scores += panel)
      half(j) ? score_panel<kTileVectors / 2>(j, scores) : score_panel<kTileVectors>(j, scores);
  }

 private:
  // Whether half the vectors of the panel from j on hold what is left of the references.
  bool half(int64_t j) const { return columns_ - j <= panel / 2; }

  template <int vectors, int width, int used>
  void pack(const E* const* from, int64_t stride, const Panels<A, width, used>& to, int64_t row) {
    A* values = to.values(row, 0);
    if (maxima_) {
      pack_rows<E, width>(from, vectors * lanes, stride, dim_, values, [&](int64_t d) { return form_.place(d); });
      form_.template sum_rows<vectors, width>(values, to.sums(row, 0), to.least_terms(row));
    } else {
      pack_rows<E, width>(from, vectors * lanes, stride, dim_, values, [](int64_t d) { return d; });
    }
  }

  template <int vectors>
  void score_panel(int64_t j, A* scores) {
    if (maxima_) {
      add_steps<vectors>(0, form_.steps(0), j, positive_);
      add_steps<vectors>(form_.steps(0), form_.steps(1), j, negative_);
      for (int64_t i = 0; i < rows_; i += kTileRows) settle<vectors>(i, j, scores + i * kBlockColumns);
      return;
    }
    int64_t d = 0;
    do {  // slice by slice; once for no dimensions
      const int64_t end = least(d + kSlice, dim_);
      const A last = end == dim_ ? bias_ : A(0);
      for (int64_t i = 0; i < rows_; i += kTileRows)
        score_tile<A, vectors>(query_.values(i, 0), d, end, reference_.values(j, 0), weight_, last,
                               scores + i * kBlockColumns, kBlockColumns);
      d = end;
    } while (d < dim_);
  }

  // halves[i * panel + j] of the sums of steps [first, last), of which there may be none.
  template <int vectors>
  void add_steps(int64_t first, int64_t last, int64_t j, A* halves) {
    const auto tile = reads_in_place() ? max_tile<A, vectors, true> : max_tile<A, vectors, false>;
    if (first == last)
      for (int64_t i = 0; i < blocks_of(rows_, kTileRows) * kTileRows; ++i)
        memset(halves + i * panel, 0, vectors * kVectorBytes);
    for (int64_t step = first; step < last; step += kSlice) {
      const int64_t slice = form_.slice(step);
      for (int64_t i = 0; i < rows_; i += kTileRows)
        tile(query_.values(i, step), query_.sums(i, slice), reference_.values(j, step), reference_.sums(j, slice),
             form_.weights(step), least(kSlice, last - step), form_.length(), step == first, halves + i * panel);
    }
  }

  // A tile's scores from the halves of its two sums, those that E7 cannot answer for made again by E1.
  template <int vectors>
  void settle(int64_t i, int64_t j, A* scores) {
    Integers<A> all = ~Integers<A>{};
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        all &= known(i, k, j, v);
        store<A>(scores + k * kBlockColumns + v * lanes, sum(positive_, i + k, v) + sum(negative_, i + k, v) + bias_);
      }
    if (bits<A>(~all)) score_again<vectors>(i, j, scores);
  }

  template <int vectors>
  void score_again(int64_t i, int64_t j, A* scores) {
    alignas(64) A again[kTileRows * panel];
    score_tile<A, vectors>(query_.values(i, 0), 0, dim_, reference_.values(j, 0), form_.weights(0), bias_, again,
                           panel);
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * kBlockColumns + v * lanes;
        const Integers<A> kept = known(i, k, j, v);
        store<A>(at, where<A>(kept, load<A>(at)) + where<A>(~kept, load<A>(again + k * panel + v * lanes)));
      }
  }

  static Vector<A> sum(const A* halves, int64_t i, int v) { return 2 * load<A>(halves + i * panel + v * lanes); }

  // Whether E7 answers for the scores of query i + k, of i's tile, and the v-th vector of references from j on. There
  // is no product in it but by 2: it is the same to the last bit wherever it is compiled.
  Integers<A> known(int64_t i, int k, int64_t j, int v) const {
    const A tiny = A(dim_) * (sizeof(A) == 4 ? A(0x1p-126) : A(0x1p-1022)), infinite = A(__builtin_inf());
    const Vector<A> needed = query_.least_terms(i)[k] + load<A>(reference_.least_terms(j) + v * lanes);
    const Vector<A> spare = sum(positive_, i + k, v) - sum(negative_, i + k, v) - needed;
    return (spare >= tiny) & (spare < infinite);
  }

  const int64_t dim_;
  const bool maxima_;
  const A* weight_;
  A bias_;
  int64_t rows_, columns_;
  MaxForm<A> form_;
  Panels<A, kQueryPanel, kQueryRows> query_;
  Panels<A, panel> reference_;
  Scratch<A> positive_, negative_;  // halves of a panel's sums of either sign of weight
};

}  // namespace
}  // namespace dissim
