// score: the scores of all pairs (E1), stored. If the references are very few, they take the place of the queries (E4).
#include "kernels.h"
#include "scan.h"

namespace dissim {
namespace {

// Results of up to this many bytes are stored through the caches, where the next reader may find them.
constexpr int64_t kMaxCachedBytes = 32 << 20;
constexpr int64_t kNontemporalAlignment = 64;  // bytes

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
    const bool aligned = (begin | row_bytes) % kNontemporalAlignment == 0;
    const bool nontemporal = sizeof(E) == sizeof(A) && !swapped && aligned && bytes > kMaxCachedBytes;
    const AllPairs<E> pairs{swapped ? p.reference : p.query, swapped ? p.query : p.reference, p.batch, p.heads, p.dim,
                            static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    scan<E>(pairs, partition_work(pairs, parallel.threads), parallel, [&](const ScoreBlock<A>& block) {
      E* scores = static_cast<E*>(p.scores) + (block.batch * p.heads + block.head) * rows * columns;
      for (int64_t i = 0; i < block.rows; ++i) {
        E* to = scores + (block.row + i) * columns + block.column;
        if (swapped) {
          for (int64_t j = 0; j < block.columns; ++j)
            scores[(block.column + j) * columns + block.row + i] = narrow<E>(block[i][j]);
        } else if (nontemporal) {
          for (int64_t j = 0; j < block.columns; j += kLanes<A>) store_nontemporal(to + j, block[i] + j);
        } else {
          store_narrow<E>(to, block[i], block.columns);
        }
      }
      if (nontemporal) store_fence();
    });
  }
};

}  // namespace

namespace DISSIM_ISA {
void score(const Score& problem, const Parallel& parallel) { dispatch<ScoreAll>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
