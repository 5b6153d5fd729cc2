// score_backward: the gradients (E2) for any upstream gradient, one batch entry and one head after another.
#include "gradient.h"
#include "kernels.h"

namespace dissim {
namespace {

// The batch is divided into at most this many groups, each with a partial sum of grad_weight: a fixed number, so that
// the order of the sum does not depend on the number of threads.
constexpr int64_t kMaxBatchGroups = 64;

template <class E>
class ScoreBackwardKernel {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;  // dimensions of a block

 public:
  static void run(const ScoreBackward& p, const Parallel& parallel) {
    map_output(p.grad_query, p.batch * p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.batch * p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    const int64_t blocks = ceil_div(p.dim, lanes), groups = min(p.batch, kMaxBatchGroups);
    const int64_t memory_budget = backward_memory_budget<E>(p.query, p.reference, p.dim);
    // Threads either take one group each or share the work of one group. The first needs fewer synchronizations but
    // memory for each thread. It is chosen if there are enough groups, and enough memory for half of the threads.
    const int64_t max_blocks = min(blocks, DimBlocks::kMaxDims / lanes);
    const bool group_per_thread =
        groups >= parallel.threads && group_bytes(p, max_blocks, 1) * parallel.threads / 2 <= memory_budget;
    const int group_threads = group_per_thread ? 1 : parallel.threads;
    const int64_t block_sums_bytes = p.grad_weight ? groups * p.heads * lanes * int64_t(sizeof(A)) : 0;
    const auto fits = [&](int64_t count) {
      return count * block_sums_bytes + group_bytes(p, count, group_threads) <= memory_budget;
    };
    DimBlocks::for_each_pass(blocks, lanes, fits, [&](const DimBlocks& pass) {
      const int64_t dims = pass.count * lanes;
      Scratch<A> group_sums(p.grad_weight ? groups * p.heads * dims : 0);  // [groups][heads][dims]
      if (p.grad_weight) memset(group_sums, 0, size_t(groups * p.heads * dims) * sizeof(A));
      const auto run_group = [&](int64_t group, Arena& arena, const Parallel& threads) {
        A* const grad_weight = p.grad_weight ? group_sums + group * p.heads * dims : nullptr;
        add_entries(p, group * p.batch / groups, (group + 1) * p.batch / groups, pass, grad_weight, arena, threads);
      };
      if (group_per_thread) {
        for_each_with(group_bytes(p, pass.count, 1), memory_budget - pass.count * block_sums_bytes, parallel, groups,
                      [&](int64_t group, Arena arena) { run_group(group, arena, Parallel{nullptr, 1}); });
      } else {
        Scratch<char> memory(group_bytes(p, pass.count, parallel.threads));
        for (int64_t group = 0; group < groups; ++group) {
          Arena arena(memory);
          run_group(group, arena, parallel);
        }
      }
      if (p.grad_weight) reduce_groups(p, group_sums, groups, pass);
    });
  }

 private:
  // The bytes that `add_entries` takes of an arena.
  static int64_t group_bytes(const ScoreBackward& p, int64_t blocks, int threads) {
    Arena counted;
    if (is_single_pair(p)) {
      counted.take<A>(2 * blocks * lanes);
    } else {
      dense_gradient(p, DimBlocks{0, blocks}, static_cast<A*>(p.grad_weight), counted, threads);
    }
    return counted.used();
  }

  static DenseGradient<E> dense_gradient(const ScoreBackward& p, const DimBlocks& blocks, A* grad_weight, Arena& arena,
                                         int threads) {
    return {arena,
            p.query,
            p.reference,
            p.heads,
            p.dim,
            blocks,
            threads,
            static_cast<const A*>(p.weight),
            static_cast<E*>(p.grad_query),
            static_cast<E*>(p.grad_reference),
            grad_weight};
  }

  // Whether a batch entry is a single pair, as for row-aligned pairs. Such an entry has no sums to share.
  static bool is_single_pair(const ScoreBackward& p) { return p.query.rows == 1 && p.reference.rows == 1; }

  // The gradients of batch entries [begin, end) in the dimensions of `blocks`; adds to grad_weight [heads][dims].
  static void add_entries(const ScoreBackward& p, int64_t begin, int64_t end, const DimBlocks& blocks, A* grad_weight,
                          Arena& arena, const Parallel& parallel) {
    if (is_single_pair(p)) {
      A* rows = arena.take<A>(2 * blocks.count * lanes);
      for (int64_t batch = begin; batch < end; ++batch) add_single_pair(p, batch, blocks, grad_weight, rows);
      return;
    }
    DenseGradient<E> gradient = dense_gradient(p, blocks, grad_weight, arena, parallel.threads);
    for (int64_t batch = begin; batch < end; ++batch) {
      gradient.set_batch(batch, parallel);
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grad = static_cast<const E*>(p.grad) + batch * p.grad_batch_stride + head * p.grad_head_stride;
        gradient.add_head(head, parallel, [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) {
          load_g(p, grad + n * p.grad_row_stride + m * p.grad_column_stride, rows, columns, g);
          return true;
        });
      }
    }
  }

  // A tile of upstream gradients in the accumulator dtype, g [rows][kTileReferences].
  static void load_g(const ScoreBackward& p, const E* from, int64_t rows, int64_t columns, A* g) {
    for (int64_t i = 0; i < rows; ++i) {
      int64_t j = 0;
      if (p.grad_column_stride == 1)
        for (; j + lanes <= columns; j += lanes)
          store<A>(g + i * kTileReferences + j, load_acc<E>(from + i * p.grad_row_stride + j));
      for (; j < columns; ++j)
        g[i * kTileReferences + j] = to_acc(from[i * p.grad_row_stride + j * p.grad_column_stride]);
    }
  }

  // A batch entry of one query and one reference. `rows` [2][dims] is scratch.
  static void add_single_pair(const ScoreBackward& p, int64_t batch, const DimBlocks& blocks, A* grad_weight, A* rows) {
    const int64_t first = blocks.first * lanes, size = blocks.count * lanes, dims = min(size, p.dim - first);
    const A* query = acc_row<E>(p.query, batch, 0, first, dims, rows);
    const A* reference = acc_row<E>(p.reference, batch, 0, first, dims, rows + size);
    for (int64_t i = 0; i < dims; ++i) {
      const int64_t d = first + i;
      const A t = query[i] - reference[i];
      A grad_query = 0;
      for (int64_t head = 0; head < p.heads; ++head) {
        const E* grads = static_cast<const E*>(p.grad);
        const A g = to_acc(grads[batch * p.grad_batch_stride + head * p.grad_head_stride]);
        grad_query += g * static_cast<const A*>(p.weight)[head * p.dim + d] * A((t > 0) - (t < 0));
        if (grad_weight) grad_weight[head * size + i] += g * (t < 0 ? -t : t);
      }
      if (p.grad_query) static_cast<E*>(p.grad_query)[batch * p.dim + d] = narrow<E>(grad_query);
      if (p.grad_reference) static_cast<E*>(p.grad_reference)[batch * p.dim + d] = narrow<E>(-grad_query);
    }
  }

  // grad_weight in the dimensions of `blocks`: the sum over the groups, in order.
  static void reduce_groups(const ScoreBackward& p, const A* group_sums, int64_t groups, const DimBlocks& blocks) {
    const int64_t first = blocks.first * lanes, size = blocks.count * lanes, dims = min(size, p.dim - first);
    for (int64_t head = 0; head < p.heads; ++head)
      for (int64_t d = 0; d < dims; ++d) {
        A& sum = static_cast<A*>(p.grad_weight)[head * p.dim + first + d] = 0;
        for (int64_t group = 0; group < groups; ++group) sum += group_sums[(group * p.heads + head) * size + d];
      }
  }
};

}  // namespace

namespace DISSIM_ISA {
void score_backward(const ScoreBackward& problem, const Parallel& parallel) {
  dispatch<ScoreBackwardKernel>(problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
