// Cache blocking: how much of both sides is packed at a time, and the panels it is packed into.
#pragma once

#include "max_form.h"

namespace dissim {
namespace {

// References of a block of scores: whole panels, and the bits of one word of hinge's active pairs.
constexpr int64_t kBlockColumns = 64;

// Numbers of queries, references and dimensions that are packed at a time. `dims` is the dimension of the rows or, if
// there is memory for only one block of references, a multiple of kL1Positions.
struct Blocking {
  int64_t rows, columns, dims;

  // The largest blocking not above `all` for which fits(blocking). First the references are halved, then the
  // dimensions. If none fits, it is the smallest one.
  template <class Fits>
  static Blocking largest(Blocking all, const Fits& fits) {
    const auto halve = [](int64_t size, int64_t unit) { return max(unit, size / 2 / unit * unit); };
    while (all.columns > kBlockColumns && !fits(all)) all.columns = halve(all.columns, kBlockColumns);
    while (all.dims > kL1Positions && !fits(all)) all.dims = halve(all.dims, kL1Positions);
    return all;
  }
};

// Rows packed into panels [positions][width], `used` rows in each panel, and what the max form (E7) needs to know of
// these rows (MaxForm::sum_rows):
//   values         [panels][positions][width]
//   row sums       [panels][slices][width]
//   min distances  [panels][width]
template <class A, int width, int used = width>
class Panels {
 public:
  Panels(Arena& arena, int64_t rows, int64_t positions, int64_t slices)
      : positions_(positions),
        slices_(slices),
        values_(arena.take<A>(ceil_div(rows, used) * width * positions)),
        row_sums_(arena.take<A>(ceil_div(rows, used) * width * slices)),
        min_distances_(arena.take<A>(ceil_div(rows, used) * width)) {}

  A* values(int64_t row, int64_t position) const {
    return values_ + (row / used * positions_ + position) * width + row % used;
  }
  A* row_sums(int64_t row, int64_t slice) const {
    return row_sums_ + (row / used * slices_ + slice) * width + row % used;
  }
  A* min_distances(int64_t row) const { return min_distances_ + row / used * width + row % used; }

 private:
  const int64_t positions_, slices_;
  A *const values_, *const row_sums_, *const min_distances_;
};

}  // namespace
}  // namespace dissim
