// score_backward: E2. Lanes are dimensions: a chunk is the kLanes dimensions of one vector, stored [rows][lanes], and
// a thread owns whole chunks, so no two threads ever add to one number and every sum has one fixed order. Both sides
// share each sign. The gradient of the weights falls out of the two sums (E2) without a third pass.
#include "gradient.h"
#include "kernels.h"

namespace dissim {
namespace {

constexpr int64_t kEntryGroups = 64;  // partial sums of grad_weight over the batch: a fixed number, for fixed order

template <class E>
class Backward {
  using A = Wide<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  Backward(const ScoreBackward& problem, const Parallel& parallel, A* grad_weight)
      : p_(problem),
        parallel_(parallel),
        grad_weight_(grad_weight),
        sums_(p_.query.rows, p_.reference.rows, p_.dim),
        query_total_(p_.heads > 1 ? sums_.query_size() : 0),
        reference_total_(p_.heads > 1 ? sums_.reference_size() : 0) {}

  // Adds batch entry `batch` to grad_weight and writes its rows of the other two.
  void entry(int64_t batch) {
    for_each(parallel_, sums_.chunks,
             [&](int64_t chunk) { sums_.template pack<E>(p_.query, p_.reference, batch, chunk); });
    for (int64_t head = 0; head < p_.heads; ++head) {
      const E* grad = static_cast<const E*>(p_.grad) + batch * p_.grad_batch_stride + head * p_.grad_head_stride;
      const bool weight = p_.grad_weight;
      sums_.accumulate(parallel_, p_.grad_query || weight, p_.grad_reference || weight,
                       [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* tile) {
                         return copy_tile(grad + n * p_.grad_row_stride + m * p_.grad_column_stride, rows, columns,
                                          tile);
                       });
      for_each(parallel_, sums_.chunks, [&](int64_t chunk) { finish(batch, head, chunk); });
    }
  }

 private:
  bool copy_tile(const E* from, int64_t rows, int64_t columns, A* tile) const {
    for (int64_t i = 0; i < rows; ++i) {
      int64_t j = 0;
      if (p_.grad_column_stride == 1)
        for (; j + lanes <= columns; j += lanes)
          store<A>(tile + i * kTileColumns + j, load_wide<E>(from + i * p_.grad_row_stride + j));
      for (; j < columns; ++j)
        tile[i * kTileColumns + j] = widen(from[i * p_.grad_row_stride + j * p_.grad_column_stride]);
    }
    return true;
  }

  void finish(int64_t batch, int64_t head, int64_t chunk) {
    const int64_t d = chunk * lanes, width = least(lanes, p_.dim - d);
    const A* weight = static_cast<const A*>(p_.weight) + head * p_.dim + d;
    if (p_.grad_weight) sums_.add_grad_weight(chunk, grad_weight_ + head * p_.dim + d, width);
    write(p_.grad_query, p_.query.rows, batch, head, chunk, sums_.query_sums(chunk), query_total_, weight,
          1 / kSignUnit<A>, width);
    write(p_.grad_reference, p_.reference.rows, batch, head, chunk, sums_.reference_sums(chunk), reference_total_,
          weight, -1 / kSignUnit<A>, width);
  }

  // grad[row][d] = factor * weight[d] * sums[row][d], over the heads before this one too.
  void write(void* grad, int64_t rows, int64_t batch, int64_t head, int64_t chunk, const A* sums, A* total,
             const A* weight, A factor, int64_t width) const {
    if (!grad) return;
    E* to = static_cast<E*>(grad) + batch * rows * p_.dim + chunk * lanes;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < width; ++i) {
        A value = factor * weight[i] * sums[row * lanes + i];
        if (p_.heads > 1) {
          A& sum = total[(chunk * rows + row) * lanes + i];
          value = sum = head ? sum + value : value;
        }
        if (head + 1 == p_.heads) to[row * p_.dim + i] = narrow<E>(value);
      }
  }

  const ScoreBackward& p_;
  const Parallel& parallel_;
  A* grad_weight_;  // wide [heads, dim]
  SignSums<A> sums_;
  Scratch<A> query_total_, reference_total_;
};

// One pair an entry: dimension by dimension, nothing to share between pairs.
template <class E>
void backward_paired(const ScoreBackward& p, int64_t batch, Wide<E>* grad_weight, Wide<E>* scratch) {
  using A = Wide<E>;
  const A* query = wide_row<E>(p.query, batch, 0, p.dim, scratch);
  const A* reference = wide_row<E>(p.reference, batch, 0, p.dim, scratch + p.dim);
  for (int64_t d = 0; d < p.dim; ++d) {
    const A t = query[d] - reference[d];
    A of_query = 0;
    for (int64_t head = 0; head < p.heads; ++head) {
      const E* grads = static_cast<const E*>(p.grad);
      const A g = widen(grads[batch * p.grad_batch_stride + head * p.grad_head_stride]);
      of_query += g * static_cast<const A*>(p.weight)[head * p.dim + d] * A((t > 0) - (t < 0));
      if (p.grad_weight) grad_weight[head * p.dim + d] += g * (t < 0 ? -t : t);
    }
    if (p.grad_query) static_cast<E*>(p.grad_query)[batch * p.dim + d] = narrow<E>(of_query);
    if (p.grad_reference) static_cast<E*>(p.grad_reference)[batch * p.dim + d] = narrow<E>(-of_query);
  }
}

template <class E>
void score_backward_as(const ScoreBackward& p, const Parallel& parallel) {
  using A = Wide<E>;
  const int64_t groups = least(p.batch, kEntryGroups), size = p.heads * p.dim;
  Scratch<A> partial(groups * size);
  memset(partial, 0, size_t(groups * size) * sizeof(A));
  const auto group = [&](int64_t i, const Parallel& inner) {
    const int64_t begin = i * p.batch / groups, end = (i + 1) * p.batch / groups;
    if (p.query.rows == 1 && p.reference.rows == 1) {
      Scratch<A> scratch(2 * p.dim);
      for (int64_t batch = begin; batch < end; ++batch) backward_paired<E>(p, batch, partial + i * size, scratch);
    } else {
      Backward<E> backward(p, inner, partial + i * size);
      for (int64_t batch = begin; batch < end; ++batch) backward.entry(batch);
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

}  // namespace

namespace DISSIM_ISA {
void score_backward(const ScoreBackward& problem, const Parallel& parallel) {
  switch (problem.dtype) {
    case Dtype::float16: return score_backward_as<Half>(problem, parallel);
    case Dtype::bfloat16: return score_backward_as<BFloat>(problem, parallel);
    case Dtype::float32: return score_backward_as<float>(problem, parallel);
    case Dtype::float64: return score_backward_as<double>(problem, parallel);
  }
}
}  // namespace DISSIM_ISA
}  // namespace dissim
