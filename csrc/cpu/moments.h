// The gradient of the weights from the two sums of E2: sum_n (q_n - c) A_n - sum_m (r_m - c) B_m for any centre c, in
// double, so that a large common offset does not cancel.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kCentreSample = 256;  // references that give the centre

// The centre of dimensions [first, last), 0 from `dim` on. Any will do, so some references, spread evenly, stand for
// all.
template <class E>
void find_centre(const Rows& reference, int64_t batch, int64_t first, int64_t last, int64_t dim, double* centre) {
  const int64_t step = ceil_div(reference.rows, kCentreSample), count = last - first;
  memset(centre, 0, size_t(count) * sizeof(double));
  for (int64_t m = 0; m < reference.rows; m += step) {
    const E* row = row_of<E>(reference, batch, m) + first * reference.dim_stride;
    for (int64_t i = 0; i < min(count, dim - first); ++i) centre[i] += double(to_acc(row[i * reference.dim_stride]));
  }
  for (int64_t i = 0; i < count; ++i) {
    centre[i] /= double(max(1, ceil_div(reference.rows, step)));
    if (centre[i] - centre[i] != 0) centre[i] = 0;  // not finite
  }
}

// total[i] += (factor values[i] - centre[i]) sums[i], for a power of two
template <class A>
DISSIM_INLINE void add_moment(const A* values, A factor, const A* sums, const double* centre, int64_t count,
                              double* total) {
  for (int64_t i = 0; i < count; ++i) total[i] += (factor * values[i] - centre[i]) * sums[i];
}

}  // namespace
}  // namespace dissim
