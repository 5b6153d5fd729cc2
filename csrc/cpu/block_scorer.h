// The scores of a block, some queries by some references for one head: packed once, scored dimension by dimension (E1)
// or, where that is faster, by maxima (E7). A score depends on its two rows, the weights and the bias alone.
#pragma once

#include "max_form.h"

namespace dissim {
namespace {

template <class E>
class BlockScorer {
  using A = Wide<E>;
  static constexpr int panel = kPanel<A>, lanes = kLanes<A>;

 public:
  // For at most `rows` queries and `columns` references at a time, a multiple of a panel.
  BlockScorer(int64_t dim, int64_t rows, int64_t columns)
      : dim_(dim),
        maxima_(dim >= kLeastMaxima),
        packed_(columns * dim),
        form_(maxima_ ? dim : 0),
        ordered_(maxima_ ? rows * dim + lanes : 0),
        negative_(maxima_ ? (rows + kTileRows) * panel : 0),
        query_sums_(rows * form_.most_slices()),
        packed_sums_(columns * form_.most_slices()),
        query_sizes_(rows),
        sizes_(columns) {}

  // Comes before `pack`, which has to follow for the first head and, where it `packs_by_head`, for every other.
  void set_head(const A* weight, A bias) {
    weight_ = weight;
    bias_ = bias;
    if (maxima_) form_.set(weight);
  }
  bool packs_by_head() const { return maxima_; }

  // `columns` references, from[j] and the last one again up to a whole panel.
  void pack(const E* const* from, int64_t stride, int64_t columns) {
    columns_ = columns;
    for (int64_t j = 0; j < columns; j += panel)
      half(j) ? pack_panel<kTileVectors / 2>(from + j, stride, j) : pack_panel<kTileVectors>(from + j, stride, j);
  }

  // scores[i * width + j] of query[i], and the last one again up to a whole tile. What follows the columns up to a
  // whole panel is overwritten.
  void score(const A* const* query, int64_t rows, A* scores, int64_t width) {
    if (maxima_)
      for (int64_t i = 0; i < rows; ++i)
        query_sizes_[i] = form_.row(query[i], ordered_ + i * dim_, query_sums_ + i * form_.most_slices());
    for (int64_t j = 0; j < columns_; j += panel)
      half(j) ? score_panel<kTileVectors / 2>(query, rows, j, scores + j, width)
              : score_panel<kTileVectors>(query, rows, j, scores + j, width);
  }

 private:
  // Whether half the vectors of the panel from j on hold what is left of the references.
  bool half(int64_t j) const { return columns_ - j <= panel / 2; }

  template <int vectors>
  void pack_panel(const E* const* from, int64_t stride, int64_t j) {
    A* to = packed_ + j * dim_;
    if (maxima_) {
      pack_rows<E, panel>(from, vectors * lanes, stride, dim_, to, [&](int64_t d) { return form_.place(d); });
      form_.template rows<vectors>(to, packed_sums_ + j * form_.most_slices(), sizes_ + j);
    } else {
      pack_rows<E, panel>(from, vectors * lanes, stride, dim_, to, [](int64_t d) { return d; });
    }
  }

  template <int vectors>
  void score_panel(const A* const* query, int64_t rows, int64_t j, A* scores, int64_t width) {
    if (maxima_) {
      add_steps<vectors>(0, form_.steps(0), rows, j, scores, width);
      add_steps<vectors>(form_.steps(0), form_.steps(1), rows, j, negative_, panel);
      for (int64_t i = 0; i < rows; i += kTileRows) settle<vectors>(i, rows, j, scores + i * width, width);
      return;
    }
    int64_t d = 0;
    do {  // slice by slice; once for no dimensions
      const int64_t end = least(d + kSlice, dim_);
      const A last = end == dim_ ? bias_ : A(0);
      for (int64_t i = 0; i < rows; i += kTileRows)
        score_tile<A, vectors>(query + i, d, end, packed_ + j * dim_, weight_, last, scores + i * width, width);
      d = end;
    } while (d < dim_);
  }

  // halves[i * stride + j] of the sums of steps [first, last), of which there may be none.
  template <int vectors>
  void add_steps(int64_t first, int64_t last, int64_t rows, int64_t j, A* halves, int64_t stride) {
    const auto tile = reads_in_place() ? max_tile<A, vectors, true> : max_tile<A, vectors, false>;
    if (first == last)
      for (int64_t i = 0; i < blocks_of(rows, kTileRows) * kTileRows; ++i)
        memset(halves + i * stride, 0, vectors * kVectorBytes);
    for (int64_t step = first; step < last; step += kSlice) {
      const int64_t steps = least(kSlice, last - step), slice = form_.slice(step);
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const A *query[kTileRows], *query_sums[kTileRows];
        for (int64_t k = 0; k < kTileRows; ++k) {
          query[k] = ordered_ + least(i + k, rows - 1) * dim_ + step;
          query_sums[k] = query_sums_ + least(i + k, rows - 1) * form_.most_slices() + slice;
        }
        tile(query, query_sums, packed_ + j * dim_ + step * panel,
             packed_sums_ + j * form_.most_slices() + slice * panel, form_.weights(step), steps, form_.length(),
             step == first, halves + i * stride, stride);
      }
    }
  }

  // A tile's scores from the halves of its two sums, those that E7 cannot answer for made again by E1.
  template <int vectors>
  void settle(int64_t i, int64_t rows, int64_t j, A* scores, int64_t width) {
    const A tiny = A(dim_) * (sizeof(A) == 4 ? A(0x1p-126) : A(0x1p-1022)), infinite = A(__builtin_inf());
    Integers<A> known[kTileRows][vectors], all = ~Integers<A>{};
    for (int k = 0; k < kTileRows; ++k) {
      const A size = query_sizes_[least(i + k, rows - 1)];
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * width + v * lanes;
        const Vector<A> positive = 2 * load<A>(at), negative = 2 * load<A>(negative_ + (i + k) * panel + v * lanes);
        const Vector<A> sizes = size + load<A>(sizes_ + j + v * lanes);
        const Vector<A> spare = positive - negative - sizes * form_.share();
        known[k][v] = (spare >= tiny) & (spare < infinite);
        all &= known[k][v];
        store<A>(at, positive + negative + bias_);
      }
    }
    if (bits<A>(~all)) score_again<vectors>(i, rows, j, known, scores, width);
  }

  template <int vectors>
  void score_again(int64_t i, int64_t rows, int64_t j, const Integers<A> (&known)[kTileRows][vectors], A* scores,
                   int64_t width) {
    alignas(64) A again[kTileRows * panel];
    const A* query[kTileRows];
    for (int64_t k = 0; k < kTileRows; ++k) query[k] = ordered_ + least(i + k, rows - 1) * dim_;
    score_tile<A, vectors>(query, 0, dim_, packed_ + j * dim_, form_.weights(0), bias_, again, panel);
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * width + v * lanes;
        const Vector<A> exact = load<A>(again + k * panel + v * lanes);
        store<A>(at, where<A>(known[k][v], load<A>(at)) + where<A>(~known[k][v], exact));
      }
  }

  const int64_t dim_;
  const bool maxima_;
  const A* weight_;
  A bias_;
  int64_t columns_;
  Scratch<A> packed_;  // [panels][dim][panel]
  // By maxima: the queries in order, the halves of sums of negative weights, what both sides of E7 have in common [rows
  // or panels][slices], and the sums of |w x| of all rows.
  MaxForm<A> form_;
  Scratch<A> ordered_, negative_, query_sums_, packed_sums_, query_sizes_, sizes_;
};

}  // namespace
}  // namespace dissim
