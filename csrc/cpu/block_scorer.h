// Blocks of scores of packed queries by packed references for one head, by the definition (E1) or, on x86 with enough
// dimensions, by the max form (E7). A score depends on its two rows, the weights and the bias alone, not on how many
// rows or dimensions are packed at a time.
//
// The loop over query tiles is inside the loop over positions. So a run of kL1Positions of a panel of references stays
// in L1 for all queries, and the running sums are kept in memory, in `scores` or in `half_sums`:
//
//   direct form (E1)                             max form (E7)
//
//   for each panel of references:                for each panel of references:
//     for each run of kL1Positions dims:           for sign in (w >= 0, w < 0):
//       for each tile of queries:                    for each run of kL1Positions of that sign:
//         scores += score_tile(tile, panel)            for each tile of queries:
//                                                        half_sums[sign] += max_tile(tile, panel)
//                                                  for each tile of queries:
//                                                    finalize_tile: scores from both half sums
//                                                    where the bound fails: rescore_direct, by E1
//
// If the rows are too long to be packed at once, ranges of positions are packed one after another and the loop over
// these ranges is the outermost. The order of the additions of a score stays the same.
#pragma once

#include <type_traits>

#include "panels.h"

namespace dissim {
namespace {

template <class E>
class BlockScorer {
  using A = Acc<E>;
  static constexpr int panel = kPanel<A>, lanes = kLanes<A>;

 public:
  // Scratch memory for at most so many queries and references at a time. The number of references is a multiple of a
  // panel. Both are 0 for a scorer that is not used.
  BlockScorer(Arena& arena, int64_t dim, const Blocking& blocking)
      : dim_(dim),
        range_length_(blocking.dims),
        packs_all_dims_(range_length_ == dim),
        uses_max_form_(dim >= kMinMaxFormDim),
        form_(arena, uses_max_form_ ? dim : 0),
        query_(arena, blocking.rows, packed_positions(), packed_slices()),
        reference_(arena, blocking.columns, packed_positions(), packed_slices()),
        half_sums_size_((blocking.rows + kTileRows) * panel),
        positive_(arena.take<A>(uses_max_form_ ? half_sums_size_ * panels_with_half_sums() : 0)),
        negative_(arena.take<A>(uses_max_form_ ? half_sums_size_ * panels_with_half_sums() : 0)),
        direct_scores_(
            arena.take<A>(uses_max_form_ && !packs_all_dims_ ? (blocking.rows + kTileRows) * kBlockColumns : 0)) {}

  // Has to be called before set_queries and set_references. These have to follow for the first head and, if
  // packs_by_head(), for every other. The rows are read when they are set or when they are scored.
  void set_head(const A* weight, A bias) {
    weight_ = weight;
    bias_ = bias;
    if (uses_max_form_) form_.set(weight);
  }
  bool packs_by_head() const { return uses_max_form_; }

  void set_queries(const E* const* from, int64_t stride, int64_t rows) {
    queries_ = from;
    query_stride_ = stride;
    rows_ = rows;
    if (packs_all_dims_) pack_queries(all_positions());
  }

  // Sets `columns` references, from[j] for j < columns. Up to a whole panel, from[j] repeats the last one.
  void set_references(const E* const* from, int64_t stride, int64_t columns) {
    references_ = from;
    reference_stride_ = stride;
    columns_ = columns;
    if (packs_all_dims_) pack_references(all_positions());
  }

  // scores[i * kBlockColumns + j] = the score of query i and reference first + j, for j < kBlockColumns. The memory up
  // to a whole register tile is overwritten too.
  void score(int64_t first, A* scores) {
    if (!packs_all_dims_) return uses_max_form_ ? score_max_form_by_ranges(scores) : score_direct_by_ranges(scores);
    for (int64_t j = first; j < min(first + kBlockColumns, columns_); j += panel, scores += panel)
      half_panel(j) ? score_panel<kTileVectors / 2>(j, scores) : score_panel<kTileVectors>(j, scores);
  }

 private:
  // Positions [first, last), which are packed together. They belong to dimensions in [dim_begin, dim_end), where
  // dimensions of other positions may lie between. In the direct form a position is a dimension.
  struct Range {
    int64_t first, last, dim_begin, dim_end;
    int64_t length() const { return last - first; }
  };
  Range all_positions() const { return {0, dim_, 0, dim_}; }

  // With ranges there is one position more, where the dimensions that do not belong to a range are written.
  int64_t packed_positions() const { return packs_all_dims_ ? dim_ : range_length_ + 1; }
  int64_t packed_slices() const {
    if (!uses_max_form_) return 0;
    return packs_all_dims_ ? form_.max_slices() : range_length_ / form_.slice_length() + 1;
  }
  int64_t panels_with_half_sums() const { return packs_all_dims_ ? 1 : kBlockColumns / panel; }

  // Whether the references left from j on fit into half the vectors of a panel.
  bool half_panel(int64_t j) const { return columns_ - j <= panel / 2; }

  // Calls visit(vectors, j) for each panel of references.
  template <class Visit>
  void for_each_panel(const Visit& visit) const {
    for (int64_t j = 0; j < columns_; j += panel)
      half_panel(j) ? visit(std::integral_constant<int, kTileVectors / 2>{}, j)
                    : visit(std::integral_constant<int, kTileVectors>{}, j);
  }

  // Calls visit(vectors, i, j, offset in a block's scores) for each register tile of a block.
  template <class Visit>
  void for_each_tile(const Visit& visit) const {
    for_each_panel([&](auto vectors, int64_t j) {
      for (int64_t i = 0; i < rows_; i += kTileRows) visit(vectors, i, j, i * kBlockColumns + j);
    });
  }

  // --- packing ------------------------------------------------------------------------------------------------------

  void pack_queries(const Range& range) {
    for (int64_t i = 0; i < rows_; i += kQueryPanelRows) {
      const E* from[kQueryPanel];
      for (int64_t k = 0; k < kQueryPanel; ++k) from[k] = queries_[min(i + k, rows_ - 1)];
      pack<kQueryPanel / lanes>(range, from, query_stride_, query_, i);
    }
  }

  void pack_references(const Range& range) {
    for_each_panel(
        [&](auto vectors, int64_t j) { pack<vectors()>(range, references_ + j, reference_stride_, reference_, j); });
  }

  template <int vectors, int width, int used>
  void pack(const Range& range, const E* const* from, int64_t stride, const Panels<A, width, used>& to, int64_t row) {
    A* values = to.values(row, 0);
    const auto pack_by = [&](const auto& position) {
      pack_rows<E, width>(from, vectors * lanes, stride, range.dim_begin, range.dim_end, values, position);
    };
    if (!uses_max_form_) return pack_by([&](int64_t d) { return d - range.dim_begin; });
    if (packs_all_dims_) {
      pack_by([&](int64_t d) { return form_.position_of(d); });
    } else {
      // Dimensions of other ranges go to the spare position at the end. As unsigned numbers, positions before the range
      // are large as well.
      pack_by([&](int64_t d) {
        const uint64_t position = uint64_t(form_.position_of(d) - range.first), length = uint64_t(range.length());
        return int64_t(position < length ? position : length);
      });
    }
    form_.template sum_rows<vectors, width>(range.first, range.last, values, to.row_sums(row, 0),
                                            to.min_distances(row));
  }

  // --- rows that are packed at once ---------------------------------------------------------------------------------

  template <int vectors>
  void score_panel(int64_t j, A* scores) {
    if (uses_max_form_) {
      for (int sign = 0; sign < 2; ++sign) add_half_sums<vectors>(sign, all_positions(), j, half_sums(sign, j));
      for (int64_t i = 0; i < rows_; i += kTileRows)
        if (!finalize_tile<vectors>(i, j, scores + i * kBlockColumns))
          rescore_direct<vectors>(i, j, scores + i * kBlockColumns);
    } else {
      add_direct<vectors>(all_positions(), j, scores);
    }
  }

  // The direct form: adds the terms of a range of dimensions to the scores of a panel. Without dimensions it still runs
  // once, for the bias.
  template <int vectors>
  void add_direct(const Range& range, int64_t j, A* scores) {
    int64_t d = range.first;
    do {
      const int64_t end = min(d + kL1Positions, range.last);
      const A bias = end == dim_ ? bias_ : A(0);
      for (int64_t i = 0; i < rows_; i += kTileRows)
        score_tile<A, vectors>(query_.values(i, d - range.first), d == 0, end - d,
                               reference_.values(j, d - range.first), weight_ + d, bias, scores + i * kBlockColumns,
                               kBlockColumns);
      d = end;
    } while (d < range.last);
  }

  // The max form: sums[i * panel + j] (+)= the half sums of a range's positions of one sign of weight. They are 0 if no
  // weight has that sign.
  template <int vectors>
  void add_half_sums(int sign, const Range& range, int64_t j, A* sums) {
    const auto tile = prefers_broadcast_operand() ? max_tile<A, vectors, true> : max_tile<A, vectors, false>;
    const int64_t first_slice = form_.slice_of(range.first);
    const int64_t first = max(range.first, form_.group_begin(sign)), last = min(range.last, form_.group_end(sign));
    if (form_.group_begin(sign) == form_.group_end(sign))
      for (int64_t i = 0; i < ceil_div(rows_, kTileRows) * kTileRows; ++i)
        memset(sums + i * panel, 0, vectors * kVectorBytes);
    for (int64_t position = first; position < last; position += kL1Positions) {
      const int64_t at = position - range.first, slice = form_.slice_of(position) - first_slice;
      for (int64_t i = 0; i < rows_; i += kTileRows)
        tile(query_.values(i, at), query_.row_sums(i, slice), reference_.values(j, at), reference_.row_sums(j, slice),
             form_.weights(position), min(kL1Positions, last - position), form_.slice_length(),
             position == form_.group_begin(sign), sums + i * panel);
    }
  }

  // Writes the scores of a tile from its half sums. Returns whether the max form keeps the rounding bound (E9) for all
  // of them.
  template <int vectors>
  bool finalize_tile(int64_t i, int64_t j, A* scores) {
    const A *positive = half_sums(0, j), *negative = half_sums(1, j);
    Integers<A> all = ~Integers<A>{};
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        all &= bound_holds(i, k, j, v);
        store<A>(scores + k * kBlockColumns + v * lanes,
                 full_sum(positive, i + k, v) + full_sum(negative, i + k, v) + bias_);
      }
    return !bits<A>(~all);
  }

  // Replaces those scores of a tile for which the bound does not hold by the direct form.
  template <int vectors>
  void rescore_direct(int64_t i, int64_t j, A* scores) {
    alignas(64) A direct[kTileRows * panel];
    score_tile<A, vectors>(query_.values(i, 0), true, dim_, reference_.values(j, 0), form_.weights(0), bias_, direct,
                           panel);
    replace_failed<vectors>(i, j, direct, panel, scores);
  }

  template <int vectors>
  void replace_failed(int64_t i, int64_t j, const A* direct, int64_t stride, A* scores) {
    for (int k = 0; k < kTileRows; ++k)
      for (int v = 0; v < vectors; ++v) {
        A* to = scores + k * kBlockColumns + v * lanes;
        const Integers<A> kept = bound_holds(i, k, j, v);
        store<A>(to, where<A>(kept, load<A>(to)) + where<A>(~kept, load<A>(direct + k * stride + v * lanes)));
      }
  }

  // The half sums of a panel for one sign of weight, [queries][panel].
  A* half_sums(int sign, int64_t j) const {
    return (sign ? negative_ : positive_) + (packs_all_dims_ ? 0 : j / panel * half_sums_size_);
  }

  // The sum of w |q - r| over one sign of weight, of query i and the v-th vector of references.
  static Vector<A> full_sum(const A* half_sums, int64_t i, int v) {
    return 2 * load<A>(half_sums + i * panel + v * lanes);
  }

  // Whether the max form keeps the rounding bound for query i + k, which is of i's tile, and the v-th vector of
  // references from j on: their weighted distance is finite and large enough (the condition of E7). The only products
  // are by 2, so that the result is bit-identical with and without fused multiply-add.
  Integers<A> bound_holds(int64_t i, int k, int64_t j, int v) const {
    const A min_distance = form_.min_distance(), infinity = A(__builtin_inf());
    const Vector<A> required = query_.min_distances(i)[k] + load<A>(reference_.min_distances(j) + v * lanes);
    const Vector<A> margin = full_sum(half_sums(0, j), i + k, v) - full_sum(half_sums(1, j), i + k, v) - required;
    return (margin >= min_distance) & (margin < infinity);
  }

  // --- rows that are too long to be packed at once: range by range --------------------------------------------------

  // Packs one range after another and calls visit(range). A range of the max form has weights of one sign.
  template <class Visit>
  void for_each_range(const Visit& visit) {
    const auto pack_and_visit = [&](const Range& range) {
      pack_references(range);
      pack_queries(range);
      visit(range);
    };
    if (!uses_max_form_)
      for (int64_t d = 0; d < dim_; d += range_length_) {
        const int64_t end = min(d + range_length_, dim_);
        pack_and_visit(Range{d, end, d, end});
      }
    for (int sign = 0; uses_max_form_ && sign < 2; ++sign)
      for (int64_t first = form_.group_begin(sign); first < form_.group_end(sign); first += range_length_) {
        const int64_t last = min(first + range_length_, form_.group_end(sign));
        pack_and_visit(Range{first, last, form_.dim_at(first), form_.dim_at(last - 1) + 1});
      }
  }

  void score_direct_by_ranges(A* scores) {
    for_each_range([&](const Range& range) {
      for_each_panel([&](auto vectors, int64_t j) { add_direct<vectors()>(range, j, scores + j); });
    });
  }

  void score_max_form_by_ranges(A* scores) {
    for_each_range([&](const Range& range) {
      for_each_panel([&](auto vectors, int64_t j) {
        for (int sign = 0; sign < 2; ++sign) add_half_sums<vectors()>(sign, range, j, half_sums(sign, j));
      });
    });
    bool all = true;
    for_each_tile([&](auto vectors, int64_t i, int64_t j, int64_t offset) {
      all &= finalize_tile<vectors()>(i, j, scores + offset);
    });
    if (!all) rescore_direct_by_ranges(scores);
  }

  void rescore_direct_by_ranges(A* scores) {
    for_each_range([&](const Range& range) {
      for_each_tile([&](auto vectors, int64_t i, int64_t j, int64_t offset) {
        score_tile<A, vectors()>(query_.values(i, 0), !range.first, range.length(), reference_.values(j, 0),
                                 form_.weights(range.first), range.last == dim_ ? bias_ : A(0), direct_scores_ + offset,
                                 kBlockColumns);
      });
    });
    for_each_tile([&](auto vectors, int64_t i, int64_t j, int64_t offset) {
      replace_failed<vectors()>(i, j, direct_scores_ + offset, kBlockColumns, scores + offset);
    });
  }

  const int64_t dim_, range_length_;
  const bool packs_all_dims_, uses_max_form_;
  const A* weight_;
  A bias_;
  const E *const *queries_, *const *references_;
  int64_t query_stride_, reference_stride_, rows_, columns_;
  MaxForm<A> form_;
  Panels<A, kQueryPanel, kQueryPanelRows> query_;
  Panels<A, panel> reference_;
  const int64_t half_sums_size_;
  A *const positive_, *const negative_, *const direct_scores_;
};

}  // namespace
}  // namespace dissim
