// Two dimensions at a time: |a| + |b| = max(|a + b|, |a - b|) (E15). Where one instruction takes the greater of two
// magnitudes, a pair of dimensions of one sign of weight costs four instructions, not E1's six: the weighted sum and
// difference of the two are made once for each row.
#pragma once

#include "score_tile.h"

#if !defined(DISSIM_ROTATES)
#if defined(__AVX512DQ__)
#define DISSIM_ROTATES 1
#else
#define DISSIM_ROTATES 0
#endif
#endif

namespace dissim {
namespace {

// Fewer dimensions are not worth it, and E9 has no room for it.
constexpr int64_t kLeastRotated = DISSIM_ROTATES ? 64 : INT64_MAX;

// A head's weights as rows take them: dimensions two by two, those of weights that are not below 0 first.
template <class A>
class Rotation {
  static constexpr int lanes = kLanes<A>, panel = kPanel<A>;

 public:
  // A rotated row has at most so many values for `dim` dimensions: whole vectors, and an odd one of each sign.
  static constexpr int64_t length(int64_t dim) { return blocks_of(dim + 2, lanes) * lanes; }

  explicit Rotation(int64_t dim) : dim_(dim), dims_(length(dim)), weights_(length(dim)) {}

  void set(const A* weight) {
    int32_t* dims = dims_;
    A* weights = weights_;
    int64_t count = 0;
    for (int sign = 0; sign < 2; ++sign) {
      for (int64_t d = 0; d < dim_; ++d) {  // without a branch that random weights would mislead
        dims[count] = int32_t(d);
        weights[count] = sign ? -weight[d] : weight[d];
        count += (weight[d] < 0) == sign;
      }
      if (count % 2) dims[count] = 0, weights[count++] = 0;
      steps_[sign] = count / 2;
    }
    for (; count < length(dim_); ++count) dims[count] = 0, weights[count] = 0;
    in_order_ = true;
    for (int64_t d = 0; d < dim_; ++d) in_order_ &= dims[d] == d;
  }

  // Steps [0, steps(0)) have weights that are not below 0, steps [steps(0), steps(1)) the others.
  int64_t steps(int sign) const { return steps_[sign]; }

  // to[2 p] = x + y, to[2 p + 1] = x - y for the weighted values x and y of step p; returns the sum of all |x|.
  A row(const A* __restrict values, A* __restrict to) const {
    const int32_t* __restrict dims = dims_;
    const A* __restrict weights = weights_;
    if (in_order_) {
      for (int64_t i = 0; i < dim_; ++i) to[i] = weights[i] * values[i];
      for (int64_t i = dim_; i < length(dim_); ++i) to[i] = 0;
    } else {
      for (int64_t i = 0; i < length(dim_); ++i) to[i] = weights[i] * values[dims[i]];
    }
    Vector<A> size = {}, sign;
    for (int i = 0; i < lanes; ++i) sign[i] = i % 2 ? -1 : 1;
    for (int64_t i = 0; i < length(dim_); i += lanes) {
      const Vector<A> v = load<A>(to + i);
      size += magnitude<A>(v);
      store<A>(to + i, swap(v, std::make_integer_sequence<int, lanes>{}) + sign * v);
    }
    return sum<A>(size);
  }

  // The same of the first `vectors` of a packed panel [dim][panel], for all its rows together.
  template <int vectors>
  void rows(const A* packed, A* to, A* sizes) const {
    Vector<A> size[vectors] = {};
    for (int64_t p = 0; p < steps_[1]; ++p, to += 2 * panel) {
      const Vector<A> wx = broadcast<A>(weights_[2 * p]), wy = broadcast<A>(weights_[2 * p + 1]);
      const A *x_row = packed + dims_[2 * p] * panel, *y_row = packed + dims_[2 * p + 1] * panel;
      for (int j = 0; j < vectors; ++j) {
        const Vector<A> x = wx * load<A>(x_row + j * lanes), y = wy * load<A>(y_row + j * lanes);
        size[j] += magnitude<A>(x) + magnitude<A>(y);
        store<A>(to + j * lanes, x + y);
        store<A>(to + panel + j * lanes, x - y);
      }
    }
    for (int j = 0; j < vectors; ++j) store<A>(sizes + j * lanes, size[j]);
  }

 private:
  template <int... lane>
  static Vector<A> swap(Vector<A> v, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(v, v, (lane ^ 1)...);
  }

  const int64_t dim_;
  int64_t steps_[2];
  bool in_order_;
  Scratch<int32_t> dims_;
  Scratch<A> weights_;
};

// sums[i][j] (+)= sum of max(|x - x'|, |y - y'|) over steps [first, last) of rotated rows query[i] and panel[.][.][j],
// in the first `vectors` of a panel. `stride` is that of the rows of sums.
template <class A, int vectors>
DISSIM_INLINE void rotated_tile(const A* const* query, int64_t first, int64_t last, bool begin, const A* panel, A* sums,
                                int64_t stride) {
  constexpr int lanes = kLanes<A>;
  Vector<A> total[kTileRows][vectors] = {};
  if (!begin)
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) total[i][j] = load<A>(sums + i * stride + j * lanes);
  static const volatile A unit = 1;  // additions as multiply-adds: processors with pipes for additions alone have two
  const Vector<A> one = broadcast<A>(unit);
  for (int64_t p = first; p < last; ++p) {
    const A* r = panel + 2 * p * kPanel<A>;
    for (int i = 0; i < kTileRows; ++i) {
#if !defined(__aarch64__)
      asm("" : "+r"(r));  // forget what was loaded through it
#endif
      const Vector<A> x = broadcast<A>(query[i][2 * p]), y = broadcast<A>(query[i][2 * p + 1]);
      for (int j = 0; j < vectors; ++j)
        total[i][j] += one * greater_magnitude<A>(x - load<A>(r + j * lanes), y - load<A>(r + kPanel<A> + j * lanes));
    }
  }
#pragma GCC unroll kTileRows
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll kTileVectors
    for (int j = 0; j < vectors; ++j) store<A>(sums + i * stride + j * lanes, total[i][j]);
}

}  // namespace
}  // namespace dissim
