// quantize: rows as codes of 8 bits with a bound of what that costs each row (E10, E14), and the extent of the values
// from which the grid of the codes is made.
#include "kernels.h"
#include "pack.h"
#include "scan.h"

namespace dissim {
namespace {

// Beyond a quarter of the greatest number a difference of two values may overflow: no bound is known.
template <class A>
DISSIM_INLINE Vector<A> residue(Vector<A> v) {  // 0 below it, NaN above
  const Vector<A> four = v * 4;
  return four - four;
}

// Bytes that threads may take beside the result.
template <class E>
int64_t quantize_room(const Rows& rows, int64_t dim) {
  return rows.rows * dim * int64_t(sizeof(E)) + (8 << 20);
}

template <class E>
struct Extents {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kRowsPerTask = 512, kMostTasks = 256;

  static void run(const Extent& p, const Parallel& parallel) {
    const int64_t tasks = max(1, min(kMostTasks, ceil_div(p.rows.rows, kRowsPerTask)));
    const int64_t chunks = ceil_div(p.dim, lanes), padded = chunks * lanes;
    Scratch<A> extents(tasks * 2 * padded);
    for_each_with(
        bytes_of<A>(padded), quantize_room<E>(p.rows, p.dim), parallel, tasks, [&](int64_t task, Arena arena) {
          A *low = extents + task * 2 * padded, *high = low + padded;
          for (int64_t d = 0; d < padded; ++d) low[d] = A(__builtin_inf()), high[d] = -low[d];
          A* const wide = arena.take<A>(padded);
          for (int64_t row = task * p.rows.rows / tasks; row < (task + 1) * p.rows.rows / tasks; ++row) {
            const A* from = acc_row<E>(p.rows, 0, row, 0, p.dim, wide);
            for (int64_t d = 0; d < p.dim; d += lanes) {
              A last[lanes] = {};
              const int64_t width = min(lanes, p.dim - d);
              if (width < lanes) memcpy(last, from + d, size_t(width) * sizeof(A));
              const Vector<A> v = load<A>(width < lanes ? last : from + d), l = load<A>(low + d), h = load<A>(high + d);
              const Integers<A> known = residue<A>(v) == 0;
              store<A>(low + d, (known & (v < l)) ? v : l);
              store<A>(high + d, (known & (v > h)) ? v : h);
            }
          }
        });
    for (int64_t d = 0; d < p.dim; ++d) {
      A low = extents[d], high = extents[padded + d];
      for (int64_t task = 1; task < tasks; ++task) {
        const A *l = extents + task * 2 * padded + d, *h = l + padded;
        low = *l < low ? *l : low;
        high = *h > high ? *h : high;
      }
      static_cast<A*>(p.low)[d] = low <= high ? low : 0;
      static_cast<A*>(p.high)[d] = low <= high ? high : 0;
    }
  }
};

template <class E>
struct Codes {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kRowsPerTask = 4 * kCodePanel;
  static constexpr double kUnit = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53, kGreatest = sizeof(A) == 4 ? 0x1p125 : 0x1p1021;

  static void run(const Quantize& p, const Parallel& parallel) {
    const int64_t rows = ceil_div(p.rows.rows, kCodePanel) * kCodePanel;
    const int64_t columns = p.groups * kCodeGroup, stride = kCodePanel * kCodeGroup;
    const int64_t bytes =
        bytes_of<A>(p.dim + lanes) + bytes_of<A>(columns + lanes) + bytes_of<uint8_t>(columns + lanes);
    const int64_t tasks = ceil_div(rows, kRowsPerTask);
    for_each_with(bytes, quantize_room<E>(p.rows, p.dim), parallel, tasks, [&](int64_t task, Arena arena) {
      A *const wide = arena.take<A>(p.dim + lanes), *const ordered = arena.take<A>(columns + lanes);
      uint8_t* const codes = arena.take<uint8_t>(columns + lanes);
      for (int64_t row = task * kRowsPerTask; row < min((task + 1) * kRowsPerTask, rows); ++row) {
        uint8_t* to = p.codes + row / kCodePanel * p.groups * stride + row % kCodePanel * kCodeGroup;
        if (row < p.rows.rows) {
          p.error_bounds[row] = encode(p, row, wide, ordered, codes);
        } else {
          p.error_bounds[row] = 0;
          memset(codes, 0, size_t(columns));
        }
        for (int64_t group = 0; group < p.groups; ++group) memcpy(to + group * stride, codes + group * kCodeGroup, 8);
      }
    });
  }

 private:
  // Writes the codes of a row and returns its error.
  static int32_t encode(const Quantize& p, int64_t row, A* wide, A* ordered, uint8_t* codes) {
    const A* from = acc_row<E>(p.rows, 0, row, 0, p.dim, wide);
    const int64_t columns = p.groups * kCodeGroup;
    A unknown = 0;
    {
      Vector<A> sums = {};
      int64_t d = 0;
      for (; d + lanes <= p.dim; d += lanes) sums += residue<A>(load<A>(from + d));
      for (; d < p.dim; ++d) unknown += from[d] * 4 - from[d] * 4;
      unknown += sum<A>(sums);
    }
    for (int64_t c = 0; c < columns; ++c) ordered[c] = from[p.dim_order[c]];
    for (int64_t c = columns; c % lanes; ++c) ordered[c] = 0;
    const A *offset = static_cast<const A*>(p.offset), *inv_scale = static_cast<const A*>(p.inv_scale);
    const A* max_code = static_cast<const A*>(p.max_code);
    Vector<A> errors = {}, sizes = {}, outside[2] = {};
    const Vector<A> zero = {}, half = broadcast<A>(0.5);
    for (int64_t c = 0; c < columns; c += lanes) {
      const Vector<A> t = (load<A>(ordered + c) - at(offset, c, columns)) * at(inv_scale, c, columns);
      const Vector<A> most = at(max_code, c, columns), positive = t > zero ? t : zero;
      const Vector<A> inside = positive < most ? positive : most;
      const Integers<A> code = __builtin_convertvector(inside + half, Integers<A>);
      // E14: what a query lies beyond the references' grid is the same for all of them, so it costs no error.
      errors += magnitude<A>((p.bases ? inside : t) - __builtin_convertvector(code, Vector<A>));
      sizes += magnitude<A>(t - half * most);
      const Vector<A> out = magnitude<A>(t - inside);
      const Integers<A> positives = lane_numbers() < Lane(p.positive * kCodeGroup - c);
      outside[0] += where<A>(positives, out);
      outside[1] += where<A>(~positives, out);
      typedef uint8_t Narrow __attribute__((vector_size(lanes)));
      const Narrow narrow = __builtin_convertvector(code, Narrow);
      memcpy(codes + c, &narrow, sizeof narrow);
    }
    if (p.bases) p.bases[row] = (double(sum<A>(outside[0])) - double(sum<A>(outside[1]))) * p.step;
    return steps(p, double(sum<A>(errors)), double(sum<A>(sizes)), unknown == 0);
  }

  static Vector<A> at(const A* values, int64_t c, int64_t columns) {
    if (c + lanes <= columns) return load<A>(values + c);
    A last[lanes] = {};
    memcpy(last, values + c, size_t(columns - c) * sizeof(A));
    return load<A>(last);
  }

  using Lane = decltype(Integers<A>{}[0] + 0);
  static Integers<A> lane_numbers() {
    Integers<A> numbers = {};
    for (int i = 0; i < lanes; ++i) numbers[i] = i;
    return numbers;
  }

  // The row's share of the distance between a score as the kernels round it and the score of the codes: E10, half of
  // E9 (|q - r| <= |q - middle| + |r - middle|), the roundings of this function, which are fewer than 8 a column, and
  // those of the sum for the base.
  static int32_t steps(const Quantize& p, double error, double size, bool known) {
    const double terms = double(p.dim + 16) * kUnit, gamma = terms / (1 - terms);
    const double all =
        error * (1 + 2 * gamma) + 2.1 * gamma * size + 8 * kUnit * 256 * double(p.groups * kCodeGroup) + p.extra;
    if (!known || !(all < kUnbounded / 4) || !(size * p.step < kGreatest)) return kUnbounded;
    return int32_t(all) + 1;
  }
};

}  // namespace

namespace DISSIM_ISA {
void extent(const Extent& problem, const Parallel& parallel) { dispatch<Extents>(problem, parallel); }
void quantize(const Quantize& problem, const Parallel& parallel) { dispatch<Codes>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
