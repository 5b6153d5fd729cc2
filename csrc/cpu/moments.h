// The gradient of the weights from the sign sums A and B of the gradients (E2):
// sum_n (q_n - c) A_n - sum_m (r_m - c) B_m for any center c. The center and the double accumulator keep a large common
// offset of all rows from canceling.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kCenterSample = 256;  // references that give the center

// Writes the center of dimensions [first, last), which is 0 from `dim` on. Any center is exact, so the mean of a sample
// of the references is enough.
template <class E>
void find_center(const Rows& reference, int64_t batch, int64_t first, int64_t last, int64_t dim, double* center) {
  const int64_t stride = ceil_div(reference.rows, kCenterSample), count = last - first;
  memset(center, 0, size_t(count) * sizeof(double));
  for (int64_t m = 0; m < reference.rows; m += stride) {
    const E* row = row_of<E>(reference, batch, m) + first * reference.dim_stride;
    for (int64_t i = 0; i < min(count, dim - first); ++i) center[i] += double(to_acc(row[i * reference.dim_stride]));
  }
  const double samples = double(max(1, ceil_div(reference.rows, stride)));
  for (int64_t i = 0; i < count; ++i) {
    center[i] /= samples;
    const bool finite = center[i] - center[i] == 0;
    if (!finite) center[i] = 0;
  }
}

// total[i] += (factor values[i] - center[i]) sums[i]. The factor is a power of two, so the product is exact.
template <class A>
DISSIM_INLINE void add_moment(const A* values, A factor, const A* sums, const double* center, int64_t count,
                              double* total) {
  for (int64_t i = 0; i < count; ++i) total[i] += (factor * values[i] - center[i]) * sums[i];
}

}  // namespace
}  // namespace dissim
