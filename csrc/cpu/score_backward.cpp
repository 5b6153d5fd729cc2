// score_backward: E2 for any upstream gradient, entry by entry and head by head.
#include "gradient.h"
#include "kernels.h"

namespace dissim {
namespace {

constexpr int64_t kEntryGroups = 64;  // partial sums of grad_weight over the batch: a fixed number, for fixed order

template <class E>
struct Backward {
  using A = Wide<E>;
  static constexpr int lanes = kLanes<A>;

  static void run(const ScoreBackward& p, const Parallel& parallel) {
    const int64_t groups = least(p.batch, kEntryGroups), size = p.heads * p.dim;
    Scratch<A> partial(groups * size);
    memset(partial, 0, size_t(groups * size) * sizeof(A));
    map_output(p.grad_query, p.batch * p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.batch * p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    const auto group = [&](int64_t i, const Parallel& inner) {
      const int64_t begin = i * p.batch / groups, end = (i + 1) * p.batch / groups;
      A* grad_weight = p.grad_weight ? partial + i * size : nullptr;
      if (p.query.rows == 1 && p.reference.rows == 1) {
        Scratch<A> scratch(2 * p.dim);
        for (int64_t batch = begin; batch < end; ++batch) paired(p, batch, grad_weight, scratch);
      } else {
        entries(p, begin, end, grad_weight, inner);
      }
    };
    if (groups >= parallel.threads) {
      for_each(parallel, groups, [&](int64_t i) { group(i, Parallel{nullptr, 1}); });
    } else {
      for (int64_t i = 0; i < groups; ++i) group(i, parallel);
    }
    if (A* grad_weight = static_cast<A*>(p.grad_weight))
      for (int64_t i = 0; i < size; ++i) {
        grad_weight[i] = 0;
        for (int64_t part = 0; part < groups; ++part) grad_weight[i] += partial[part * size + i];
      }
  }

  static void entries(const ScoreBackward& p, int64_t begin, int64_t end, A* grad_weight, const Parallel& parallel) {
    Gradient<E> gradient(p.query, p.reference, p.heads, p.dim, static_cast<const A*>(p.weight),
                         static_cast<E*>(p.grad_query), static_cast<E*>(p.grad_reference), grad_weight);
    for (int64_t batch = begin; batch < end; ++batch) {
      gradient.begin(batch, parallel);
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grad = static_cast<const E*>(p.grad) + batch * p.grad_batch_stride + head * p.grad_head_stride;
        gradient.add(head, parallel, [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) {
          copy_tile(p, grad + n * p.grad_row_stride + m * p.grad_column_stride, rows, columns, g);
          return true;
        });
      }
    }
  }

  static void copy_tile(const ScoreBackward& p, const E* from, int64_t rows, int64_t columns, A* g) {
    for (int64_t i = 0; i < rows; ++i) {
      int64_t j = 0;
      if (p.grad_column_stride == 1)
        for (; j + lanes <= columns; j += lanes)
          store<A>(g + i * kTileColumns + j, load_wide<E>(from + i * p.grad_row_stride + j));
      for (; j < columns; ++j) g[i * kTileColumns + j] = widen(from[i * p.grad_row_stride + j * p.grad_column_stride]);
    }
  }

  // One pair an entry: dimension by dimension, nothing to share between pairs.
  static void paired(const ScoreBackward& p, int64_t batch, A* grad_weight, A* scratch) {
    const A* query = wide_row<E>(p.query, batch, 0, p.dim, scratch);
    const A* reference = wide_row<E>(p.reference, batch, 0, p.dim, scratch + p.dim);
    for (int64_t d = 0; d < p.dim; ++d) {
      const A t = query[d] - reference[d];
      A of_query = 0;
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grads = static_cast<const E*>(p.grad);
        const A g = widen(grads[batch * p.grad_batch_stride + head * p.grad_head_stride]);
        of_query += g * static_cast<const A*>(p.weight)[head * p.dim + d] * A((t > 0) - (t < 0));
        if (grad_weight) grad_weight[head * p.dim + d] += g * (t < 0 ? -t : t);
      }
      if (p.grad_query) static_cast<E*>(p.grad_query)[batch * p.dim + d] = narrow<E>(of_query);
      if (p.grad_reference) static_cast<E*>(p.grad_reference)[batch * p.dim + d] = narrow<E>(-of_query);
    }
  }
};

}  // namespace

namespace DISSIM_ISA {
void score_backward(const ScoreBackward& problem, const Parallel& parallel) { dispatch<Backward>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
