// Scores by the max form (E7): |a - b| = 2 max(a, b) - a - b. A term of a pair takes two instructions, a maximum and a
// multiply-add, where the definition (E1) takes three. MATH.md derives the layout, the constants and the error.
//
// The dimensions are sorted by the sign of their weight; a position is a place in that order. Each of the two groups is
// split into slices of K = slice_length() positions:
//
//   position   0 ............................ group_end(0) ...................... dim
//   weight     | w >= 0                                   | w < 0               |
//   slices     | K | K | K | K | K | K | K | K | rest     | K | K | K | K | rest |
//
// For one pair and one sign of weight, max_tile adds up half of the weighted distance:
//
//   for each slice:
//       sum = row_sum(query, slice) + row_sum(reference, slice)         row_sum(x, slice) = -1/2 sum of w x
//       for each position of the slice:
//           sum += w * max(query, reference)                            sum = 1/2 sum of w |query - reference|
//       half_sum += sum
//
// Because every slice starts with its own row sums, no partial sum is much larger than the terms of one slice.
#pragma once

#include "processor.h"
#include "score_tile.h"

namespace dissim {
namespace {

// The smallest number of dimensions for the max form: with fewer, too many pairs fail its condition (E7). On ARM it is
// never used: NEON computes |a - b| in one instruction.
#if defined(__x86_64__)
constexpr int64_t kMinMaxFormDim = 128;
#else
constexpr int64_t kMinMaxFormDim = INT64_MAX;
#endif

// The order of the dimensions for one head, its weights in that order, and what a row contributes to all its pairs.
template <class A>
class MaxForm {
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kMinSliceLength = 8;
  // The error of a score is at most K + K / 4 + kOtherRoundings units of u z (E7): K multiply-adds, K / 4 additions of
  // a row sum, seven single roundings and one spare.
  static constexpr int64_t kOtherRoundings = 8;

 public:
  MaxForm(Arena& arena, int64_t dim)
      : dim_(dim),
        slice_length_(choose_slice_length(dim)),
        dims_(arena.take<int32_t>(dim + 1)),
        positions_(arena.take<int32_t>(dim)),
        weights_(arena.take<A>(dim)) {}

  // Sorts the dimensions by the sign of their weight.
  void set(const A* weight) {
    int64_t position = 0;
    for (int sign = 0; sign < 2; ++sign) {
      for (int64_t d = 0; d < dim_; ++d) {  // without a branch, which random weights would make unpredictable
        dims_[position] = int32_t(d);
        position += (weight[d] < 0) == sign;
      }
      group_end_[sign] = position;
    }
    for (position = 0; position < dim_; ++position) {
      positions_[dims_[position]] = int32_t(position);
      weights_[position] = weight[dims_[position]];
    }
  }

  // Positions of the weights of a sign: 0 for those that are not below 0, 1 for the others.
  int64_t group_begin(int sign) const { return sign ? group_end_[0] : 0; }
  int64_t group_end(int sign) const { return group_end_[sign]; }

  int64_t slice_length() const { return slice_length_; }
  int64_t slice_of(int64_t position) const {
    return position < group_end_[0]
               ? position / slice_length_
               : ceil_div(group_end_[0], slice_length_) + (position - group_end_[0]) / slice_length_;
  }
  int64_t max_slices() const { return dim_ / slice_length_ + 2; }  // each sign can end with a shorter one

  const A* weights(int64_t position) const { return weights_ + position; }
  int64_t position_of(int64_t dim) const { return positions_[dim]; }
  int64_t dim_at(int64_t position) const { return dims_[position]; }

  // What positions [first, last), whole slices, of some rows contribute to every pair of such a row. The rows are the
  // first `vectors` of a panel [positions][width].
  //   row_sums [slices][width]: -1/2 sum of w x over each slice.
  //   min_distances [width]: tau sum of |w x| over all positions (E7). The weighted distance of a pair has to be at
  //     least the sum of this number of both rows. Calls for successive positions continue the sum; the last one
  //     multiplies it by tau.
  template <int vectors, int width>
  void sum_rows(int64_t first, int64_t last, const A* panel, A* row_sums, A* min_distances) const {
    Vector<A> size[vectors] = {};
    if (first)
      for (int j = 0; j < vectors; ++j) size[j] = load<A>(min_distances + j * lanes);
    int64_t slice = 0;
    for (int sign = 0; sign < 2; ++sign)
      for (int64_t at = max(first, group_begin(sign)); at < min(last, group_end_[sign]); ++slice) {
        const int64_t end = min(at + slice_length_, min(last, group_end_[sign]));
        Vector<A> total[vectors] = {};
        const auto term = [&](int64_t position, int j) {
          return weights_[position] * load<A>(panel + (position - first) * width + j * lanes);
        };
        for (; at + 4 <= end; at += 4)  // in groups of four: fewer roundings than one by one
          for (int j = 0; j < vectors; ++j) {
            const Vector<A> four[] = {term(at, j), term(at + 1, j), term(at + 2, j), term(at + 3, j)};
            total[j] += (four[0] + four[1]) + (four[2] + four[3]);
            size[j] +=
                (magnitude<A>(four[0]) + magnitude<A>(four[1])) + (magnitude<A>(four[2]) + magnitude<A>(four[3]));
          }
        for (; at < end; ++at)
          for (int j = 0; j < vectors; ++j) {
            total[j] += term(at, j);
            size[j] += magnitude<A>(term(at, j));
          }
        for (int j = 0; j < vectors; ++j) store<A>(row_sums + slice * width + j * lanes, A(-0.5) * total[j]);
      }
    const A factor = last == dim_ ? tau() : A(1);
    for (int j = 0; j < vectors; ++j) store<A>(min_distances + j * lanes, factor * size[j]);
  }

  // D times the smallest normal number: below it, sums may consist of subnormal numbers, whose errors are not relative.
  A min_distance() const { return A(dim_) * (sizeof(A) == 4 ? A(0x1p-126) : A(0x1p-1022)); }

 private:
  // K near sqrt(dim): a shorter slice costs more instructions, a longer one a larger tau.
  static int64_t choose_slice_length(int64_t dim) {
    int64_t length = kMinSliceLength;
    while (2 * length * length <= dim && length < kL1Positions) length *= 2;
    return length;
  }

  // The smallest ratio of the weighted distance to the weighted size of a pair for which the max form keeps the
  // rounding bound (E9).
  A tau() const { return A(slice_length_ + slice_length_ / 4 + kOtherRoundings) / A(dim_ - max_slices()); }

  const int64_t dim_, slice_length_;
  int64_t group_end_[2];
  int32_t *const dims_, *const positions_;  // the dimension of each position; the position of each dimension
  A* const weights_;  // by position
};

// For query i < kTileRows and reference j of the first `vectors` of a panel:
//   half_sums[i * kPanel + j] (+)= sum of w |query[.][i] - panel[.][j]| / 2 over `count` positions of one sign of
//   weight
// in slices of `slice_length`, from the values and the row sums of both sides. `first` starts half_sums; later calls
// continue it. With `broadcast_operand` the maximum reads the query's value from memory itself (processor.h). Not
// inlined: the loop needs every register.
template <class A, int vectors, bool broadcast_operand>
__attribute__((noinline)) void max_tile(const A* query, const A* query_sums, const A* panel, const A* panel_sums,
                                        const A* weights, int64_t count, int64_t slice_length, bool first,
                                        A* half_sums) {
  constexpr int lanes = kLanes<A>;
  int64_t position = 0;
  for (int64_t slice = 0; position < count; ++slice) {
    Vector<A> sums[kTileRows][vectors];
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j)
        sums[i][j] = query_sums[slice * kQueryPanel + i] + load<A>(panel_sums + slice * kPanel<A> + j * lanes);
#pragma GCC unroll 2
    for (const int64_t end = min(position + slice_length, count); position < end; ++position) {
      const Vector<A> w = broadcast<A>(weights[position]);
      Vector<A> r[vectors];
      for (int j = 0; j < vectors; ++j) r[j] = load<A>(panel + position * kPanel<A> + j * lanes);
      for (int i = 0; i < kTileRows; ++i) {
        const A* from = query + position * kQueryPanel + i;
        const Vector<A> q = broadcast_operand ? Vector<A>{} : broadcast<A>(*from);
        for (int j = 0; j < vectors; ++j)
          sums[i][j] += w * (broadcast_operand ? maximum<A>(r[j], from) : maximum<A>(r[j], q));
      }
    }
    const bool starts = first && !slice;
#pragma GCC unroll kTileRows
    for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
      for (int j = 0; j < vectors; ++j) {
        A* to = half_sums + i * kPanel<A> + j * lanes;
        store<A>(to, starts ? sums[i][j] : load<A>(to) + sums[i][j]);
      }
  }
}

}  // namespace
}  // namespace dissim
