// The scores of a block, some queries by some references for one head: packed once, scored dimension by dimension (E1)
// or, where that is faster, two at a time (E15). A score depends on its two rows, the weights and the bias alone.
#pragma once

#include "rotation.h"

namespace dissim {
namespace {

// Dimensions of a panel that stay in L1 for all rows of a block: 32 KiB.
constexpr int64_t kSlice = 32768 / (kTileVectors * kVectorBytes);

template <class E>
class BlockScorer {
  using A = Wide<E>;
  static constexpr int panel = kPanel<A>, lanes = kLanes<A>;

 public:
  // For at most `rows` queries and `columns` references at a time, a multiple of a panel.
  BlockScorer(int64_t dim, int64_t rows, int64_t columns)
      : dim_(dim),
        rotates_(dim >= kLeastRotated),
        length_(rotates_ ? Rotation<A>::length(dim) : dim),
        packed_(columns * length_),
        rotation_(rotates_ ? dim : 0),
        plain_(rotates_ ? panel * dim : 0),
        rotated_(rotates_ ? rows * length_ : 0),
        negative_(rotates_ ? (rows + kTileRows) * panel : 0),
        query_sizes_(rows),
        reference_sizes_(columns) {}

  // Comes before `pack`, which has to follow for the first head and, where it `packs_by_head`, for every other.
  void set_head(const A* weight, A bias) {
    weight_ = weight;
    bias_ = bias;
    if (rotates_) rotation_.set(weight);
  }
  bool packs_by_head() const { return rotates_; }

  // `columns` references, from[j] and the last one again up to a whole panel. They are read again when scored.
  void pack(const E* const* from, int64_t stride, int64_t columns) {
    from_ = from;
    stride_ = stride;
    columns_ = columns;
    for (int64_t j = 0; j < columns; j += panel)
      half(j) ? pack_panel<kTileVectors / 2>(j) : pack_panel<kTileVectors>(j);
  }

  // scores[i * width + j] of query[i], and the last one again up to a whole tile. What follows the columns up to a
  // whole panel is overwritten.
  void score(const A* const* query, int64_t rows, A* scores, int64_t width) {
    if (rotates_)
      for (int64_t i = 0; i < rows; ++i) query_sizes_[i] = rotation_.row(query[i], rotated_ + i * length_);
    for (int64_t j = 0; j < columns_; j += panel)
      half(j) ? score_panel<kTileVectors / 2>(query, rows, j, scores + j, width)
              : score_panel<kTileVectors>(query, rows, j, scores + j, width);
  }

 private:
  // Whether half the vectors of the panel from j on hold what is left of the references.
  bool half(int64_t j) const { return columns_ - j <= panel / 2; }

  template <int vectors>
  void pack_panel(int64_t j) {
    A* to = packed_ + j * length_;
    if (rotates_) {
      pack_plain<vectors>(j);
      rotation_.template rows<vectors>(plain_, to, reference_sizes_ + j);
    } else {
      pack_rows<E, panel>(from_ + j, vectors * lanes, stride_, dim_, to);
    }
  }

  template <int vectors>
  void score_panel(const A* const* query, int64_t rows, int64_t j, A* scores, int64_t width) {
    if (rotates_) {
      add_steps<vectors>(0, rotation_.steps(0), rows, j, scores, width);
      add_steps<vectors>(rotation_.steps(0), rotation_.steps(1), rows, j, negative_, panel);
      for (int64_t i = 0; i < rows; i += kTileRows) settle<vectors>(query, i, rows, j, scores + i * width, width);
      return;
    }
    int64_t d = 0;
    do {  // slice by slice; once for no dimensions
      const int64_t end = least(d + kSlice, dim_);
      const A last = end == dim_ ? bias_ : A(0);
      for (int64_t i = 0; i < rows; i += kTileRows)
        score_tile<A, vectors>(query + i, d, end, packed_ + j * length_, weight_, last, scores + i * width, width);
      d = end;
    } while (d < dim_);
  }

  // sums[i * stride + j] of steps [first, last), of which there may be none.
  template <int vectors>
  void add_steps(int64_t first, int64_t last, int64_t rows, int64_t j, A* sums, int64_t stride) {
    int64_t p = first;
    do {
      const int64_t end = least(p + kSlice / 2, last);
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const A* query[kTileRows];
        for (int64_t k = 0; k < kTileRows; ++k) query[k] = rotated_ + least(i + k, rows - 1) * length_;
        rotated_tile<A, vectors>(query, p, end, p == first, packed_ + j * length_, sums + i * stride, stride);
      }
      p = end;
    } while (p < last);
  }

  // A tile's scores from its two sums, those that E15 cannot answer for made again by E1.
  template <int vectors>
  void settle(const A* const* query, int64_t i, int64_t rows, int64_t j, A* scores, int64_t width) {
    const A tiny = A(dim_) * (sizeof(A) == 4 ? A(0x1p-126) : A(0x1p-1022)), infinite = A(__builtin_inf());
    Integers<A> known[kTileRows][vectors], all = ~Integers<A>{};
    for (int k = 0; k < kTileRows; ++k) {
      const A size = query_sizes_[least(i + k, rows - 1)];
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * width + v * lanes;
        const Vector<A> positive = load<A>(at), negative = load<A>(negative_ + (i + k) * panel + v * lanes);
        const Vector<A> sizes = size + load<A>(reference_sizes_ + j + v * lanes);
        const Vector<A> spare = positive + negative - sizes * (5 / A(dim_));
        known[k][v] = (spare >= tiny) & (spare < infinite);
        all &= known[k][v];
        store<A>(at, positive - negative + bias_);
      }
    }
    if (bits<A>(~all)) score_again<vectors>(query + i, j, known, scores, width);
  }

  template <int vectors>
  void score_again(const A* const* query, int64_t j, const Integers<A> (&known)[kTileRows][vectors], A* scores,
                   int64_t width) {
    alignas(64) A again[kTileRows * panel];
    if (plain_of_ != j) pack_plain<vectors>(j);
    score_tile<A, vectors>(query, 0, dim_, plain_, weight_, bias_, again, panel);
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        A* at = scores + k * width + v * lanes;
        const Vector<A> exact = load<A>(again + k * panel + v * lanes);
        store<A>(at, where<A>(known[k][v], load<A>(at)) + where<A>(~known[k][v], exact));
      }
  }

  template <int vectors>
  void pack_plain(int64_t j) {
    pack_rows<E, panel>(from_ + j, vectors * lanes, stride_, dim_, plain_);
    plain_of_ = j;
  }

  const int64_t dim_;
  const bool rotates_;
  const int64_t length_;
  const A* weight_;
  A bias_;
  const E* const* from_;
  int64_t stride_, columns_, plain_of_;
  Scratch<A> packed_;  // [panels][length_][panel]
  // Where it rotates: one panel as it is, the queries, the sums of weights below 0, and the sums of |w x| of all rows.
  Rotation<A> rotation_;
  Scratch<A> plain_, rotated_, negative_, query_sizes_, reference_sizes_;
};

}  // namespace
}  // namespace dissim
