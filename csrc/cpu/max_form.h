// Scores by maxima: |a - b| = 2 max(a, b) - a - b (E7), two instructions a dimension where E1 takes three. What the two
// sides of E7 have in common is taken off before they are summed, a few dimensions at a time, so that no sum exceeds
// a score by more than those.
#pragma once

#include "processor.h"
#include "score_tile.h"

namespace dissim {
namespace {

// NEON has E1's subtraction and magnitude in one instruction. For fewer dimensions E9 has no room.
#if defined(__x86_64__)
constexpr int64_t kLeastMaxima = 128;
#else
constexpr int64_t kLeastMaxima = INT64_MAX;
#endif

// A head's weights in the order of steps: dimensions of weights that are not below 0 first, then the others, each cut
// in slices of `length` steps and a shorter last one.
template <class A>
class MaxForm {
  static constexpr int lanes = kLanes<A>;

 public:
  MaxForm(Arena& arena, int64_t dim)
      : dim_(dim),
        dims_(arena.take<int32_t>(dim + 1)),
        places_(arena.take<int32_t>(dim)),
        weights_(arena.take<A>(dim)) {
    while (2 * length_ * length_ <= dim && length_ < kSlice) length_ *= 2;  // longer ones leave E9 too little
  }

  void set(const A* weight) {
    int64_t step = 0;
    for (int sign = 0; sign < 2; ++sign) {
      for (int64_t d = 0; d < dim_; ++d) {  // no branch for random weights to mislead
        dims_[step] = int32_t(d);
        step += (weight[d] < 0) == sign;
      }
      steps_[sign] = step;
    }
    for (step = 0; step < dim_; ++step) {
      places_[dims_[step]] = int32_t(step);
      weights_[step] = weight[dims_[step]];
    }
  }

  // Steps [begin(0), end(0)) have weights that are not below 0, steps [begin(1), end(1)) the others.
  int64_t begin(int sign) const { return sign ? steps_[0] : 0; }
  int64_t end(int sign) const { return steps_[sign]; }
  int64_t length() const { return length_; }
  int64_t slice(int64_t step) const {
    return step < steps_[0] ? step / length_ : ceil_div(steps_[0], length_) + (step - steps_[0]) / length_;
  }
  int64_t most_slices() const { return dim_ / length_ + 2; }
  const A* weights(int64_t step) const { return weights_ + step; }
  int64_t place(int64_t dim) const { return places_[dim]; }
  int64_t dim(int64_t step) const { return dims_[step]; }

  // Of the first `vectors` of a panel of steps [first, last), whole slices of them: sums [slices][width] of -w x / 2
  // over each slice, and a share of sum |w x|, which goes on from the steps before: for E9 to hold, a pair's sum of
  // terms has to be as large as both rows' least_terms together.
  template <int vectors, int width>
  void sum_rows(int64_t first, int64_t last, const A* packed, A* sums, A* least_terms) const {
    Vector<A> size[vectors] = {};
    if (first)
      for (int j = 0; j < vectors; ++j) size[j] = load<A>(least_terms + j * lanes);
    int64_t slice = 0;
    for (int sign = 0; sign < 2; ++sign)
      for (int64_t step = max(first, begin(sign)); step < min(last, steps_[sign]); ++slice) {
        const int64_t end = min(step + length_, min(last, steps_[sign]));
        Vector<A> total[vectors] = {};
        const auto x = [&](int64_t at, int j) {
          return weights_[at] * load<A>(packed + (at - first) * width + j * lanes);
        };
        for (; step + 4 <= end; step += 4)  // fewer roundings than one by one
          for (int j = 0; j < vectors; ++j) {
            const Vector<A> some[] = {x(step, j), x(step + 1, j), x(step + 2, j), x(step + 3, j)};
            total[j] += (some[0] + some[1]) + (some[2] + some[3]);
            size[j] +=
                (magnitude<A>(some[0]) + magnitude<A>(some[1])) + (magnitude<A>(some[2]) + magnitude<A>(some[3]));
          }
        for (; step < end; ++step)
          for (int j = 0; j < vectors; ++j) {
            total[j] += x(step, j);
            size[j] += magnitude<A>(x(step, j));
          }
        for (int j = 0; j < vectors; ++j) store<A>(sums + slice * width + j * lanes, A(-0.5) * total[j]);
      }
    const A share = last == dim_ ? A(length_ + length_ / 4 + 8) / A(dim_ - most_slices()) : A(1);
    for (int j = 0; j < vectors; ++j) store<A>(least_terms + j * lanes, share * size[j]);
  }

 private:
  const int64_t dim_;
  int64_t length_ = 8, steps_[2];
  int32_t *const dims_, *const places_;  // of steps; of dimensions
  A* const weights_;  // of steps
};

// halves[i * panel + j] (+)= sum of w |query[.][i] - packed[.][j]| / 2 over `steps` steps in slices of `length`, for
// the first `vectors` of a panel, from both sides' values and sums. Not inlined: a step needs every register.
template <class A, int vectors, bool in_place>
__attribute__((noinline)) void max_tile(const A* query, const A* query_sums, const A* packed, const A* packed_sums,
                                        const A* weights, int64_t steps, int64_t length, bool begin, A* halves) {
  constexpr int lanes = kLanes<A>;
  int64_t step = 0;
  for (int64_t slice = 0; step < steps; ++slice) {
    Vector<A> sums[kTileRows][vectors];
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j)
        sums[i][j] = query_sums[slice * kQueryPanel + i] + load<A>(packed_sums + slice * kPanel<A> + j * lanes);
#pragma GCC unroll 2
    for (const int64_t end = min(step + length, steps); step < end; ++step) {
      const Vector<A> w = broadcast<A>(weights[step]);
      Vector<A> r[vectors];
      for (int j = 0; j < vectors; ++j) r[j] = load<A>(packed + step * kPanel<A> + j * lanes);
      for (int i = 0; i < kTileRows; ++i) {
        const A* from = query + step * kQueryPanel + i;
        const Vector<A> q = in_place ? Vector<A>{} : broadcast<A>(*from);
        for (int j = 0; j < vectors; ++j) sums[i][j] += w * (in_place ? greater<A>(r[j], from) : greater<A>(r[j], q));
      }
    }
    const bool begins = begin && !slice;
#pragma GCC unroll kTileRows
    for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
      for (int j = 0; j < vectors; ++j) {
        A* at = halves + i * kPanel<A> + j * lanes;
        store<A>(at, begins ? sums[i][j] : load<A>(at) + sums[i][j]);
      }
  }
}

}  // namespace
}  // namespace dissim
