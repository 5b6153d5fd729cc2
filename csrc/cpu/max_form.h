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
  using Index = typename VectorOf<A>::scalar;
  static constexpr int lanes = kLanes<A>, panel = kPanel<A>;

 public:
  explicit MaxForm(int64_t dim)
      : dim_(dim),
        vectors_(blocks_of(dim, lanes)),
        places_(dim),
        weights_(dim + lanes),
        counts_(2 * vectors_),
        chosen_(2 * vectors_ * lanes) {
    while (2 * length_ * length_ <= dim && length_ < kSlice) length_ *= 2;  // longer ones leave E9 too little
    memset(chosen_, 0, size_t(2 * vectors_ * lanes) * sizeof(Index));
  }

  void set(const A* weight) {
    int64_t step = 0;
    for (int sign = 0; sign < 2; ++sign) {
      for (int64_t v = 0; v < vectors_; ++v) {
        const int64_t first = first_of(v);
        int64_t count = 0;
        for (int64_t d = v * lanes; d < least((v + 1) * lanes, dim_); ++d) {  // no branch for random weights to mislead
          chosen(sign, v)[count] = Index(d - first);
          count += (weight[d] < 0) == sign;
        }
        counts_[sign * vectors_ + v] = int32_t(count);
        for (int64_t i = 0; i < count; ++i) places_[first + chosen(sign, v)[i]] = int32_t(step + i);
        step += count;
      }
      steps_[sign] = step;
    }
    for (int64_t d = 0; d < dim_; ++d) weights_[places_[d]] = weight[d];
  }

  // Steps [0, steps(0)) have weights that are not below 0, steps [steps(0), steps(1)) the others.
  int64_t steps(int sign) const { return steps_[sign]; }
  int64_t length() const { return length_; }
  int64_t slice(int64_t step) const {
    return step < steps_[0] ? step / length_ : blocks_of(steps_[0], length_) + (step - steps_[0]) / length_;
  }
  int64_t most_slices() const { return dim_ / length_ + 2; }
  const A* weights(int64_t step) const { return weights_ + step; }
  int64_t place(int64_t dim) const { return places_[dim]; }

  // So much of its rows' sizes a pair's sum of terms has to be for E9 to hold.
  A share() const { return A(length_ + length_ / least(4, lanes) + 8) / A(dim_ - most_slices()); }

  // Puts a row's values in order; sums[slice] = -sum of w x / 2 over the slice; returns the row's size, sum |w x|.
  A row(const A* __restrict values, A* __restrict to, A* __restrict sums) const {
    put_in_order(values, to);
    Vector<A> size = {};
    each_slice([&](int64_t slice, int64_t step, int64_t end) {
      Vector<A> total = {};
      for (; step < end; step += lanes) {
        Vector<A> x = load<A>(weights_ + step) * load<A>(to + step);
        if (end - step < lanes) x = where<A>(lanes_of<A>((1u << (end - step)) - 1), x);
        total += x;
        size += magnitude<A>(x);
      }
      sums[slice] = A(-0.5) * sum<A>(total);
    });
    return sum<A>(size);
  }

  // The same sums and sizes of the first `vectors` of a panel packed in order, for all its rows: sums [slices][panel].
  template <int vectors>
  void rows(const A* packed, A* sums, A* sizes) const {
    Vector<A> size[vectors] = {};
    each_slice([&](int64_t slice, int64_t step, int64_t end) {
      Vector<A> total[vectors] = {};
      const auto x = [&](int64_t at, int j) {
        const Vector<A> x = weights_[at] * load<A>(packed + at * panel + j * lanes);
        size[j] += magnitude<A>(x);
        return x;
      };
      for (; step + 4 <= end; step += 4)  // fewer roundings than one by one
        for (int j = 0; j < vectors; ++j) total[j] += (x(step, j) + x(step + 1, j)) + (x(step + 2, j) + x(step + 3, j));
      for (; step < end; ++step)
        for (int j = 0; j < vectors; ++j) total[j] += x(step, j);
      for (int j = 0; j < vectors; ++j) store<A>(sums + slice * panel + j * lanes, A(-0.5) * total[j]);
    });
    for (int j = 0; j < vectors; ++j) store<A>(sizes + j * lanes, size[j]);
  }

 private:
  template <class F>
  DISSIM_INLINE void each_slice(const F& visit) const {
    int64_t slice = 0;
    for (int sign = 0; sign < 2; ++sign)
      for (int64_t step = sign ? steps_[0] : 0; step < steps_[sign]; step += length_)
        visit(slice++, step, least(step + length_, steps_[sign]));
  }

  // to[place(d)] = values[d], and something up to a vector behind the last: a vector's values of one sign come
  // together, and what they are stored with is overwritten by the next ones.
  void put_in_order(const A* values, A* to) const {
    const int64_t vectors = vectors_, last = dim_ - lanes;
    const int32_t* counts = counts_;
    const Index* chosen = chosen_;
    for (int sign = 0; sign < 2; ++sign)
      for (int64_t v = 0; v < vectors; ++v, chosen += lanes) {
        store<A>(to, permuted<A>(load<A>(values + least(v * lanes, last)), chosen));
        to += *counts++;
      }
  }

  int64_t first_of(int64_t vector) const { return least(vector * lanes, dim_ - lanes); }
  Index* chosen(int sign, int64_t vector) const { return chosen_ + (sign * vectors_ + vector) * lanes; }

  const int64_t dim_, vectors_;
  int64_t length_ = 8, steps_[2];
  Scratch<int32_t> places_;  // the steps of dimensions
  Scratch<A> weights_;  // of steps
  // Of each sign and each vector of dimensions, how many have it and which, counted from first_of(vector); then any.
  Scratch<int32_t> counts_;
  Scratch<Index> chosen_;
};

// halves[i * stride + j] (+)= sum of w |query[i] - packed[.][j]| / 2 over `steps` steps in slices of `length`, for the
// first `vectors` of a panel, from both sides' values and sums. Not inlined: a step needs every register.
template <class A, int vectors, bool in_place>
__attribute__((noinline)) void max_tile(const A* const* query, const A* const* query_sums, const A* packed,
                                        const A* packed_sums, const A* weights, int64_t steps, int64_t length,
                                        bool begin, A* halves, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  int64_t step = 0;
  for (int64_t slice = 0; step < steps; ++slice) {
    Vector<A> sums[kTileRows][vectors];
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j)
        sums[i][j] = query_sums[i][slice] + load<A>(packed_sums + slice * kPanel<A> + j * lanes);
#pragma GCC unroll 2
    for (const int64_t end = least(step + length, steps); step < end; ++step) {
      const Vector<A> w = broadcast<A>(weights[step]);
      Vector<A> r[vectors];
      for (int j = 0; j < vectors; ++j) r[j] = load<A>(packed + step * kPanel<A> + j * lanes);
      for (int i = 0; i < kTileRows; ++i) {
        const A* from = query[i] + step;
        const Vector<A> q = in_place ? Vector<A>{} : broadcast<A>(*from);
        for (int j = 0; j < vectors; ++j) sums[i][j] += w * (in_place ? greater<A>(r[j], from) : greater<A>(r[j], q));
      }
    }
    const bool begins = begin && !slice;
#pragma GCC unroll kTileRows
    for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
      for (int j = 0; j < vectors; ++j) {
        A* at = halves + i * stride + j * lanes;
        store<A>(at, begins ? sums[i][j] : load<A>(at) + sums[i][j]);
      }
  }
}

}  // namespace
}  // namespace dissim
