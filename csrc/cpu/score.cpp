// score: E1 over all pairs, stored. The side with very few rows plays the query (E4).
#include "kernels.h"
#include "scan.h"

namespace dissim {
namespace {

constexpr int64_t kMostCached = 32 << 20;  // bytes of a result that caches may keep for whoever reads it next

template <class E>
struct ScoreAll {
  using A = Acc<E>;

  static void run(const Score& p, const Parallel& parallel) {
    const int64_t rows = p.query.rows, columns = p.reference.rows;
    const int64_t bytes = p.batch * p.heads * rows * columns * int64_t(sizeof(E));
    if (!bytes) return;
    map_output(p.scores, bytes, parallel);
    const bool swapped = columns < rows && columns < kPanel<A>;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(p.scores), row_bytes = uintptr_t(columns) * sizeof(E);
    const bool streams = sizeof(E) == sizeof(A) && !swapped && (begin | row_bytes) % 64 == 0 && bytes > kMostCached;
    const Pairs<E> pairs{swapped ? p.reference : p.query, swapped ? p.query : p.reference, p.batch, p.heads, p.dim,
                         static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    scan<E>(pairs, cut(pairs, parallel.threads), parallel, [&](const Block<A>& block) {
      E* scores = static_cast<E*>(p.scores) + (block.batch * p.heads + block.head) * rows * columns;
      for (int64_t i = 0; i < block.rows; ++i) {
        E* to = scores + (block.row + i) * columns + block.column;
        if (swapped) {
          for (int64_t j = 0; j < block.columns; ++j)
            scores[(block.column + j) * columns + block.row + i] = narrow<E>(block[i][j]);
        } else if (streams) {
          for (int64_t j = 0; j < block.columns; j += kLanes<A>) stream(to + j, block[i] + j);
        } else {
          store_narrow<E>(to, block[i], block.columns);
        }
      }
      if (streams) finish_streams();
    });
  }
};

}  // namespace

namespace DISSIM_ISA {
void score(const Score& problem, const Parallel& parallel) { dispatch<ScoreAll>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
