// score: E1 over all pairs. Lanes are reference rows in a packed panel (score_tile) or, where one side has too few
// rows to fill a tile, dimensions (score_rows). Every score is one sum in an order that depends on the shape alone.
#include "kernels.h"
#include "score_tile.h"

namespace dissim {
namespace {

constexpr int64_t kPanelBytes = 1 << 18;  // packed panels of a task: a share of L2 that leaves room for the rest
constexpr int64_t kRowsPerTask = 256;     // packing a panel costs about as much as scoring it against 4 rows

// Where scores go: element [n, m] of a batch entry's head.
template <class E>
struct Output {
  E* scores;
  int64_t row_stride, column_stride;
};

template <class E>
struct Side {  // a score problem with the roles of query and reference settled (E4)
  const Score& problem;
  const Rows &query, &reference;
  bool swapped;

  Output<E> output(int64_t batch, int64_t head) const {
    int64_t rows = problem.query.rows, columns = problem.reference.rows;
    E* scores = static_cast<E*>(problem.scores) + (batch * problem.heads + head) * rows * columns;
    return swapped ? Output<E>{scores, 1, columns} : Output<E>{scores, columns, 1};
  }
  const Wide<E>* weight(int64_t head) const {
    return static_cast<const Wide<E>*>(problem.weight) + head * problem.dim;
  }
  Wide<E> bias(int64_t head) const { return problem.bias ? static_cast<const Wide<E>*>(problem.bias)[head] : 0; }
};

template <class E>
void score_panels(const Side<E>& side, const Parallel& parallel) {
  using A = Wide<E>;
  constexpr int width = kPanel<A>;
  const Score& p = side.problem;
  const int64_t dim = p.dim, rows = side.query.rows, panels = blocks_of(side.reference.rows, width);
  const int64_t wanted = blocks_of(4 * parallel.threads, p.batch);  // tasks of a batch entry that keep threads busy
  const int64_t fit = most(1, kPanelBytes / (width * dim * int64_t(sizeof(A))));
  const int64_t group = least(fit, blocks_of(panels, wanted)), groups = blocks_of(panels, group);
  const int64_t cuts = least(blocks_of(wanted, groups), blocks_of(rows, kRowsPerTask));
  const int64_t cut = blocks_of(blocks_of(rows, cuts), kTileRows) * kTileRows;

  for_each(parallel, p.batch * groups * cuts, [&](int64_t task) {
    const int64_t begin = task % cuts * cut, end = least(begin + cut, rows), batch = task / cuts / groups;
    const int64_t first = task / cuts % groups * group, count = least(group, panels - first);
    if (begin >= end) return;
    Scratch<A> packed(count * width * dim), wide(kTileRows * dim);
    for (int64_t i = 0; i < count; ++i)
      pack_panel<E, width>(side.reference, batch, (first + i) * width, dim, packed + i * width * dim);

    for (int64_t n = begin; n < end; n += kTileRows) {
      const A* query[kTileRows];
      for (int i = 0; i < kTileRows; ++i)
        query[i] = wide_row<E>(side.query, batch, least(n + i, rows - 1), dim, wide + i * dim);
      for (int64_t head = 0; head < p.heads; ++head) {
        const Output<E> out = side.output(batch, head);
        for (int64_t i = 0; i < count; ++i) {
          A tile[kTileRows][width];
          score_tile<A>(query, packed + i * width * dim, side.weight(head), side.bias(head), dim, tile);
          const int64_t m = (first + i) * width, columns = least(width, side.reference.rows - m);
          for (int64_t row = 0; row < least(kTileRows, end - n); ++row) {
            E* to = out.scores + (n + row) * out.row_stride + m * out.column_stride;
            for (int64_t j = 0; j < columns; ++j) to[j * out.column_stride] = narrow<E>(tile[row][j]);
          }
        }
      }
    }
  });
}

template <class E>
void score_few(const Side<E>& side, const Parallel& parallel) {
  using A = Wide<E>;
  const Score& p = side.problem;
  const int64_t rows = side.reference.rows, cuts = blocks_of(rows, kRowsPerTask);
  const int64_t entries = most(1, kRowsPerTask / rows);  // batch entries of a task where an entry has few rows

  for_each(parallel, blocks_of(p.batch, entries) * cuts, [&](int64_t task) {
    const int64_t begin = task % cuts * kRowsPerTask, end = least(begin + kRowsPerTask, rows);
    const int64_t entry = task / cuts * entries;
    Scratch<A> wide(p.dim);
    for (int64_t batch = entry; batch < least(entry + entries, p.batch); ++batch)
      for (int64_t n = 0; n < side.query.rows; ++n) {
        const A* query = wide_row<E>(side.query, batch, n, p.dim, wide);
        for (int64_t m = begin; m < end; m += kRowGroup) {
          const E* reference[kRowGroup];
          for (int i = 0; i < kRowGroup; ++i) reference[i] = row_of<E>(side.reference, batch, least(m + i, end - 1));
          for (int64_t head = 0; head < p.heads; ++head) {
            A scores[kRowGroup];
            score_rows<E>(
                query, reference, side.reference.dim_stride, side.weight(head), side.bias(head), p.dim, scores);
            const Output<E> out = side.output(batch, head);
            for (int64_t i = 0; i < least(kRowGroup, end - m); ++i)
              out.scores[n * out.row_stride + (m + i) * out.column_stride] = narrow<E>(scores[i]);
          }
        }
      }
  });
}

template <class E>
void score_as(const Score& p, const Parallel& parallel) {
  if (p.batch * p.heads * p.query.rows * p.reference.rows == 0) return;
  const bool swapped = p.reference.rows < p.query.rows && p.reference.rows < kPanel<Wide<E>>;
  const Side<E> side{p, swapped ? p.reference : p.query, swapped ? p.query : p.reference, swapped};
  side.query.rows < kTileRows ? score_few(side, parallel) : score_panels(side, parallel);
}

}  // namespace

namespace DISSIM_ISA {
void score(const Score& problem, const Parallel& parallel) {
  switch (problem.dtype) {
    case Dtype::float16: return score_as<Half>(problem, parallel);
    case Dtype::bfloat16: return score_as<BFloat>(problem, parallel);
    case Dtype::float32: return score_as<float>(problem, parallel);
    case Dtype::float64: return score_as<double>(problem, parallel);
  }
}
}  // namespace DISSIM_ISA
}  // namespace dissim
