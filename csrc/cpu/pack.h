// What the kernels share before and around their loops: running on threads, access to rows in the accumulator dtype,
// and packing of rows into panels, transposed so that the lanes of a vector are rows.
#pragma once

#include <utility>

#include "huge_pages.h"
#include "scratch.h"
#include "simd.h"

namespace dissim {
namespace {

DISSIM_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
DISSIM_INLINE int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
DISSIM_INLINE constexpr int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Calls each(worker, i) for i < count on the threads of `parallel`.
template <class F>
void for_each_worker(const Parallel& parallel, int64_t count, F each) {
  if (parallel.threads > 1 && count > 1) {
    parallel.run(
        parallel.threads, count, [](void* context, int worker, int64_t i) { (*static_cast<F*>(context))(worker, i); },
        &each);
  } else {
    for (int64_t i = 0; i < count; ++i) each(0, i);
  }
}

template <class F>
void for_each(const Parallel& parallel, int64_t count, F each) {
  for_each_worker(parallel, count, [&](int, int64_t i) { each(i); });
}

// Calls each(i, arena) for i < count, with `bytes` of scratch memory in the arena. The number of threads is limited so
// that their arenas fit in `memory_budget` bytes; it is at least one.
template <class F>
void for_each_with(int64_t bytes, int64_t memory_budget, const Parallel& parallel, int64_t count, F each) {
  const int64_t threads = max(1, min(min(parallel.threads, count), memory_budget / max(1, bytes)));
  Scratch<char> memory(threads * bytes);
  for_each_worker(Parallel{parallel.run, int(threads)}, count,
                  [&](int worker, int64_t i) { each(i, Arena(memory + worker * bytes)); });
}

// Takes the first-touch page faults of an output, which is null or overwritten completely later. Otherwise two threads
// that first write to one page at the same time would both clear it.
inline void map_output(void* output, int64_t bytes, const Parallel& parallel) {
  if (!output) return;
  advise_huge_pages(output, bytes);
  for_each(parallel, ceil_div(bytes, kHugePage), [&](int64_t i) { static_cast<char*>(output)[i * kHugePage] = 0; });
}

// Calls Operation<E>::run(problem, parallel) for the element type E of `dtype`.
template <template <class> class Operation, class Problem>
void dispatch(Dtype dtype, const Problem& problem, const Parallel& parallel) {
  switch (dtype) {
    case Dtype::float16: return Operation<Half>::run(problem, parallel);
    case Dtype::bfloat16: return Operation<BFloat>::run(problem, parallel);
    case Dtype::float32: return Operation<float>::run(problem, parallel);
    case Dtype::float64: return Operation<double>::run(problem, parallel);
  }
}

template <template <class> class Operation, class Problem>
void dispatch(const Problem& problem, const Parallel& parallel) {
  dispatch<Operation>(problem.dtype, problem, parallel);
}

template <class E>
DISSIM_INLINE const E* row_of(const Rows& rows, int64_t batch, int64_t row) {
  return static_cast<const E*>(rows.data) + batch * rows.batch_stride + row * rows.row_stride;
}

// Dimensions [first, first + dim) of a row as contiguous values of the accumulator dtype. Returns a pointer into the
// row itself where that has this layout and dtype, else to a copy in `scratch` [dim].
template <class E>
const Acc<E>* acc_row(const Rows& rows, int64_t batch, int64_t row, int64_t first, int64_t dim, Acc<E>* scratch) {
  using A = Acc<E>;
  const E* from = row_of<E>(rows, batch, row) + first * rows.dim_stride;
  int64_t d = 0;
  if (rows.dim_stride == 1) {
    if constexpr (sizeof(E) == sizeof(A)) return reinterpret_cast<const A*>(from);
    for (; d + kLanes<A> <= dim; d += kLanes<A>) store<A>(scratch + d, load_acc<E>(from + d));
  }
  for (; d < dim; ++d) scratch[d] = to_acc(from[d * rows.dim_stride]);
  return scratch;
}

template <class A, bool high, int... lane>
DISSIM_INLINE Vector<A> interleave(Vector<A> a, Vector<A> b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = kLanes<A>;
  return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * lanes + (high ? lanes / 2 : 0))...);
}

// Transposes a square of lanes x lanes values in registers by log2(lanes) perfect shuffles.
template <class A>
DISSIM_INLINE void transpose(Vector<A> (&v)[kLanes<A>]) {
  constexpr int lanes = kLanes<A>;
  constexpr auto sequence = std::make_integer_sequence<int, lanes>{};
  for (int stage = 1; stage < lanes; stage *= 2) {
    Vector<A> next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<A, false>(v[i], v[i + lanes / 2], sequence);
      next[2 * i + 1] = interleave<A, true>(v[i], v[i + lanes / 2], sequence);
    }
    for (int i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

// Packs dimensions [begin, end) of `rows` rows, a multiple of a vector's lanes, into a panel [positions][width]:
//   panel[position(d)][row] = from[row][d]
// The rows fill columns [0, rows) of the panel. `stride` is the stride of their dimensions.
template <class E, int width, class Position>
void pack_rows(const E* const* from, int rows, int64_t stride, int64_t begin, int64_t end, Acc<E>* panel,
               const Position& position) {
  using A = Acc<E>;
  constexpr int lanes = kLanes<A>;
  constexpr int64_t prefetch = 256 / sizeof(E);  // not every hardware prefetcher follows so many rows
  const int64_t vector_end = stride == 1 ? end - (end - begin) % lanes : begin;
  for (int row = 0; row < rows; row += lanes)
    for (int64_t d = begin; d < vector_end; d += lanes) {
      Vector<A> square[lanes];
      for (int i = 0; i < lanes; ++i) {
        __builtin_prefetch(from[row + i] + d + prefetch);
        square[i] = load_acc<E>(from[row + i] + d);
      }
      transpose<A>(square);
      for (int i = 0; i < lanes; ++i) store<A>(panel + position(d + i) * width + row, square[i]);
    }
  for (int64_t d = vector_end; d < end; ++d)
    for (int i = 0; i < rows; ++i) panel[position(d) * width + i] = to_acc(from[i][d * stride]);
}

}  // namespace
}  // namespace dissim
