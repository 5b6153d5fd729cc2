// score_backward: E2 for any upstream gradient, entry by entry and head by head.
#include "gradient.h"
#include "kernels.h"

namespace dissim {
namespace {

constexpr int64_t kEntryGroups = 64;  // partial sums of grad_weight over the batch: a fixed number, for fixed order

template <class E>
struct Backward {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

  static void run(const ScoreBackward& p, const Parallel& parallel) {
    map_output(p.grad_query, p.batch * p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.batch * p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    const int64_t chunks = ceil_div(p.dim, lanes), groups = min(p.batch, kEntryGroups);
    const int64_t room = backward_room<E>(p.query, p.reference, p.dim);
    // Entries at once take more memory, one after another more turns.
    const bool at_once = groups >= parallel.threads &&
                         bytes(p, min(chunks, Chunks::kMostDims / lanes), 1) * parallel.threads / 2 <= room;
    const int64_t sums = p.grad_weight ? groups * p.heads * lanes * int64_t(sizeof(A)) : 0;  // of a chunk
    const auto fits = [&](int64_t count) {
      return count * sums + bytes(p, count, at_once ? 1 : parallel.threads) <= room;
    };
    Chunks::each(chunks, lanes, fits, [&](const Chunks& some) {
      const int64_t left = room - some.count * sums;
      const int64_t dims = min(some.count * lanes, p.dim - some.first * lanes), size = some.count * lanes;
      Scratch<A> partial(p.grad_weight ? groups * p.heads * size : 0);  // [groups][heads][size]
      if (p.grad_weight) memset(partial, 0, size_t(groups * p.heads * size) * sizeof(A));
      const auto group = [&](int64_t i, Arena& arena, const Parallel& inner) {
        const int64_t begin = i * p.batch / groups, end = (i + 1) * p.batch / groups;
        entries(p, begin, end, some, p.grad_weight ? partial + i * p.heads * size : nullptr, arena, inner);
      };
      if (at_once) {
        for_each_with(bytes(p, some.count, 1), left, parallel, groups,
                      [&](int64_t i, Arena arena) { group(i, arena, Parallel{nullptr, 1}); });
      } else {
        Scratch<char> memory(bytes(p, some.count, parallel.threads));
        for (int64_t i = 0; i < groups; ++i) {
          Arena arena(memory);
          group(i, arena, parallel);
        }
      }
      for (int64_t head = 0; p.grad_weight && head < p.heads; ++head)
        for (int64_t d = 0; d < dims; ++d) {
          A& sum = static_cast<A*>(p.grad_weight)[head * p.dim + some.first * lanes + d] = 0;
          for (int64_t i = 0; i < groups; ++i) sum += partial[(i * p.heads + head) * size + d];
        }
    });
  }

 private:
  // What `entries` takes of an arena.
  static int64_t bytes(const ScoreBackward& p, int64_t chunks, int threads) {
    Arena counted;
    if (is_paired(p)) {
      counted.take<A>(2 * chunks * lanes);
    } else {
      gradient(p, Chunks{0, chunks}, static_cast<A*>(p.grad_weight), counted, threads);
    }
    return counted.used();
  }

  static Gradient<E> gradient(const ScoreBackward& p, const Chunks& some, A* grad_weight, Arena& arena, int threads) {
    return {arena,
            p.query,
            p.reference,
            p.heads,
            p.dim,
            some,
            threads,
            static_cast<const A*>(p.weight),
            static_cast<E*>(p.grad_query),
            static_cast<E*>(p.grad_reference),
            grad_weight};
  }

  static bool is_paired(const ScoreBackward& p) { return p.query.rows == 1 && p.reference.rows == 1; }

  static void entries(const ScoreBackward& p, int64_t begin, int64_t end, const Chunks& some, A* grad_weight,
                      Arena& arena, const Parallel& parallel) {
    if (is_paired(p)) {
      A* scratch = arena.take<A>(2 * some.count * lanes);
      for (int64_t batch = begin; batch < end; ++batch) paired(p, batch, some, grad_weight, scratch);
      return;
    }
    Gradient<E> gradients = gradient(p, some, grad_weight, arena, parallel.threads);
    for (int64_t batch = begin; batch < end; ++batch) {
      gradients.begin(batch, parallel);
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grad = static_cast<const E*>(p.grad) + batch * p.grad_batch_stride + head * p.grad_head_stride;
        gradients.add(head, parallel, [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) {
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
          store<A>(g + i * kTileColumns + j, load_acc<E>(from + i * p.grad_row_stride + j));
      for (; j < columns; ++j) g[i * kTileColumns + j] = to_acc(from[i * p.grad_row_stride + j * p.grad_column_stride]);
    }
  }

  // One pair an entry: dimension by dimension, nothing to share between pairs.
  static void paired(const ScoreBackward& p, int64_t batch, const Chunks& some, A* grad_weight, A* scratch) {
    const int64_t first = some.first * lanes, size = some.count * lanes, dims = min(size, p.dim - first);
    const A* query = acc_row<E>(p.query, batch, 0, first, dims, scratch);
    const A* reference = acc_row<E>(p.reference, batch, 0, first, dims, scratch + size);
    for (int64_t i = 0; i < dims; ++i) {
      const int64_t d = first + i;
      const A t = query[i] - reference[i];
      A of_query = 0;
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grads = static_cast<const E*>(p.grad);
        const A g = to_acc(grads[batch * p.grad_batch_stride + head * p.grad_head_stride]);
        of_query += g * static_cast<const A*>(p.weight)[head * p.dim + d] * A((t > 0) - (t < 0));
        if (grad_weight) grad_weight[head * size + i] += g * (t < 0 ? -t : t);
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
