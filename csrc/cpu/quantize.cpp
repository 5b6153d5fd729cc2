// quantize: rows as 8-bit codes, with a bound of the error that the codes cause in the scores of each row (E10, E14).
// extent: the range of the values of each dimension, from which the grid of the codes is made.
// dissim_kernels/backends/codes.py and rounding.py compute the same in plain torch, with constants of the same names.
#include "../pair_math.h"
#include "kernels.h"
#include "pack.h"

namespace dissim {
namespace {

// A value above the largest number divided by this has no bound, because a difference of two might overflow.
constexpr int kMaxValueDivisor = 4;

// 0 for a value that has a bound, else NaN.
template <class A>
DISSIM_INLINE Vector<A> zero_if_bounded(Vector<A> v) {
  const Vector<A> scaled = v * kMaxValueDivisor;
  return scaled - scaled;
}

// Bytes of memory that a call may use beside its result.
template <class E>
int64_t quantize_memory_budget(const Rows& rows, int64_t dim) {
  return rows.rows * dim * int64_t(sizeof(E)) + (8 << 20);
}

template <class E>
struct ExtentScan {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kRowsPerTask = 512, kMaxTasks = 256;

  static void run(const Extent& p, const Parallel& parallel) {
    const int64_t tasks = max(1, min(kMaxTasks, ceil_div(p.rows.rows, kRowsPerTask)));
    const int64_t padded_dim = ceil_div(p.dim, lanes) * lanes;
    Scratch<A> extents(tasks * 2 * padded_dim);  // [tasks][low, high][padded_dim]
    const int64_t bytes = scratch_bytes<A>(padded_dim), memory_budget = quantize_memory_budget<E>(p.rows, p.dim);
    for_each_with(bytes, memory_budget, parallel, tasks, [&](int64_t task, Arena arena) {
      A *const low = extents + task * 2 * padded_dim, *const high = low + padded_dim;
      for (int64_t d = 0; d < padded_dim; ++d) low[d] = A(__builtin_inf()), high[d] = -low[d];
      A* const scratch = arena.take<A>(padded_dim);
      for (int64_t row = task * p.rows.rows / tasks; row < (task + 1) * p.rows.rows / tasks; ++row)
        extend(acc_row<E>(p.rows, 0, row, 0, p.dim, scratch), p.dim, low, high);
    });
    for (int64_t d = 0; d < p.dim; ++d) {
      A low = extents[d], high = extents[padded_dim + d];
      for (int64_t task = 1; task < tasks; ++task) {
        const A *task_low = extents + task * 2 * padded_dim + d, *task_high = task_low + padded_dim;
        low = *task_low < low ? *task_low : low;
        high = *task_high > high ? *task_high : high;
      }
      static_cast<A*>(p.low)[d] = low <= high ? low : 0;
      static_cast<A*>(p.high)[d] = low <= high ? high : 0;
    }
  }

  // Extends the ranges [low, high] by a row's values that have a bound.
  static void extend(const A* row, int64_t dim, A* low, A* high) {
    for (int64_t d = 0; d < dim; d += lanes) {
      A padded[lanes] = {};
      const int64_t left = min(lanes, dim - d);
      if (left < lanes) memcpy(padded, row + d, size_t(left) * sizeof(A));
      const Vector<A> v = load<A>(left < lanes ? padded : row + d), l = load<A>(low + d), h = load<A>(high + d);
      const Integers<A> bounded = zero_if_bounded<A>(v) == 0;
      store<A>(low + d, (bounded & (v < l)) ? v : l);
      store<A>(high + d, (bounded & (v > h)) ? v : h);
    }
  }
};

template <class E>
struct Quantizer {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kRowsPerTask = 4 * kCodePanel;
  static constexpr double kUnitRoundoff = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53;

  // The constants of a row's error (MATH.md, "The error of a row").
  static constexpr int64_t kRoundingSlack = 16;  // spare roundings in gamma, beyond the D of a sum
  // The multiple of gamma * size: the rounding of the score, of the base, and 0.1 for that of `size`.
  static constexpr double kRowErrorFactor = 2.1;
  static constexpr double kCodeRoundings = 8, kCodeRange = 256;  // roundings per column, of numbers up to kCodeRange
  // From these on a row has no bound: with a larger error, sums would not fit into int32; with a larger size (an eighth
  // of the largest number), a score might overflow, and E9 does not hold.
  static constexpr int32_t kMaxRowError = kUnbounded / 4;
  static constexpr double kMaxScoreSize = sizeof(A) == 4 ? 0x1p125 : 0x1p1021;

  static void run(const Quantize& p, const Parallel& parallel) {
    const int64_t rows = ceil_div(p.rows.rows, kCodePanel) * kCodePanel;
    const int64_t columns = p.groups * kCodeGroup, group_stride = kCodePanel * kCodeGroup;
    const int64_t bytes =
        scratch_bytes<A>(p.dim + lanes) + scratch_bytes<A>(columns + lanes) + scratch_bytes<uint8_t>(columns + lanes);
    const int64_t tasks = ceil_div(rows, kRowsPerTask);
    for_each_with(bytes, quantize_memory_budget<E>(p.rows, p.dim), parallel, tasks, [&](int64_t task, Arena arena) {
      A *const acc_values = arena.take<A>(p.dim + lanes), *const ordered = arena.take<A>(columns + lanes);
      uint8_t* const codes = arena.take<uint8_t>(columns + lanes);
      for (int64_t row = task * kRowsPerTask; row < min((task + 1) * kRowsPerTask, rows); ++row) {
        if (row < p.rows.rows) {
          p.error_bounds[row] = encode(p, row, acc_values, ordered, codes);
        } else {
          p.error_bounds[row] = 0;
          memset(codes, 0, size_t(columns));
        }
        uint8_t* to = p.codes + row / kCodePanel * p.groups * group_stride + row % kCodePanel * kCodeGroup;
        for (int64_t group = 0; group < p.groups; ++group)
          memcpy(to + group * group_stride, codes + group * kCodeGroup, kCodeGroup);
      }
    });
  }

 private:
  // Writes the codes and, for queries, the base of a row. Returns its error bound.
  static int32_t encode(const Quantize& p, int64_t row, A* acc_values, A* ordered, uint8_t* codes) {
    const A* values = acc_row<E>(p.rows, 0, row, 0, p.dim, acc_values);
    const bool bounded = all_bounded(values, p.dim);
    const int64_t columns = p.groups * kCodeGroup;
    for (int64_t c = 0; c < columns; ++c) ordered[c] = values[p.dim_order[c]];
    for (int64_t c = columns; c % lanes; ++c) ordered[c] = 0;
    const A *offset = static_cast<const A*>(p.offset), *inv_scale = static_cast<const A*>(p.inv_scale);
    const A* max_code = static_cast<const A*>(p.max_code);
    // Sums of |v - code|, of |v - max_code / 2|, and of what is clamped, by sign of weight.
    Vector<A> errors = {}, sizes = {}, clamped[2] = {};
    const Vector<A> zero = {}, half = broadcast<A>(0.5);
    for (int64_t c = 0; c < columns; c += lanes) {
      const Vector<A> v = (load<A>(ordered + c) - load_padded(offset, c, columns)) * load_padded(inv_scale, c, columns);
      const Vector<A> limit = load_padded(max_code, c, columns), not_below_0 = v > zero ? v : zero;
      const Vector<A> inside = not_below_0 < limit ? not_below_0 : limit;
      const Integers<A> code = __builtin_convertvector(inside + half, Integers<A>);
      // What clamping changes in a query is the same for all references. It goes into the base, not the error (E14).
      errors += magnitude<A>((p.bases ? inside : v) - __builtin_convertvector(code, Vector<A>));
      sizes += magnitude<A>(v - half * limit);
      const Vector<A> outside = magnitude<A>(v - inside);
      const Integers<A> positive = lane_numbers() < Lane(p.positive * kCodeGroup - c);
      clamped[0] += where<A>(positive, outside);
      clamped[1] += where<A>(~positive, outside);
      typedef uint8_t NarrowCodes __attribute__((vector_size(lanes)));
      const NarrowCodes narrow = __builtin_convertvector(code, NarrowCodes);
      memcpy(codes + c, &narrow, sizeof narrow);
    }
    if (p.bases) p.bases[row] = (double(sum<A>(clamped[0])) - double(sum<A>(clamped[1]))) * p.step;
    return error_bound(p, double(sum<A>(errors)), double(sum<A>(sizes)), bounded);
  }

  static bool all_bounded(const A* values, int64_t dim) {
    A zero_or_nan = 0;
    Vector<A> sums = {};
    int64_t d = 0;
    for (; d + lanes <= dim; d += lanes) sums += zero_if_bounded<A>(load<A>(values + d));
    for (; d < dim; ++d) zero_or_nan += values[d] * kMaxValueDivisor - values[d] * kMaxValueDivisor;
    zero_or_nan += sum<A>(sums);
    return zero_or_nan == 0;
  }

  // Values from column c on, 0 behind the last one.
  static Vector<A> load_padded(const A* values, int64_t c, int64_t columns) {
    if (c + lanes <= columns) return load<A>(values + c);
    A padded[lanes] = {};
    memcpy(padded, values + c, size_t(columns - c) * sizeof(A));
    return load<A>(padded);
  }

  using Lane = decltype(Integers<A>{}[0] + 0);
  static Integers<A> lane_numbers() {
    Integers<A> numbers = {};
    for (int i = 0; i < lanes; ++i) numbers[i] = i;
    return numbers;
  }

  // A bound in steps of the row's share of the difference between a score as the kernels round it and the score of the
  // codes (MATH.md, "The error of a row").
  static int32_t error_bound(const Quantize& p, double code_error, double size, bool bounded) {
    const double roundings = double(p.dim + kRoundingSlack) * kUnitRoundoff, gamma = roundings / (1 - roundings);
    const double columns = double(p.groups * kCodeGroup);
    const double error = code_error * (1 + 2 * gamma) + kRowErrorFactor * gamma * size +
                         kCodeRoundings * kUnitRoundoff * kCodeRange * columns + p.extra;
    if (!bounded || !(error < kMaxRowError) || !(size * p.step < kMaxScoreSize)) return kUnbounded;
    return int32_t(error) + 1;
  }
};

}  // namespace

namespace DISSIM_ISA {
void extent(const Extent& problem, const Parallel& parallel) { dispatch<ExtentScan>(problem, parallel); }
void quantize(const Quantize& problem, const Parallel& parallel) { dispatch<Quantizer>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
