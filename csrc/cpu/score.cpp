// score: E1 over all pairs, stored. The side with very few rows plays the query (E4).
#include "kernels.h"
#include "scan.h"

namespace dissim {
namespace {

template <class E>
struct ScoreAll {
  using A = Wide<E>;

  static void run(const Score& p, const Parallel& parallel) {
    const int64_t rows = p.query.rows, columns = p.reference.rows;
    if (p.batch * p.heads * rows * columns == 0) return;
    map_output(p.scores, p.batch * p.heads * rows * columns * int64_t(sizeof(E)), parallel);
    const bool swapped = columns < rows && columns < kPanel<A>;
    const Pairs<E> pairs{swapped ? p.reference : p.query, swapped ? p.query : p.reference, p.batch, p.heads, p.dim,
                         static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    scan<E>(pairs, cut(pairs, parallel.threads), parallel, [&](const Block<A>& block) {
      E* scores = static_cast<E*>(p.scores) + (block.batch * p.heads + block.head) * rows * columns;
      for (int64_t i = 0; i < block.rows; ++i) {
        if (swapped) {
          for (int64_t j = 0; j < block.columns; ++j)
            scores[(block.column + j) * columns + block.row + i] = narrow<E>(block[i][j]);
        } else {
          store_narrow<E>(scores + (block.row + i) * columns + block.column, block[i], block.columns);
        }
      }
    });
  }
};

}  // namespace

namespace DISSIM_ISA {
void score(const Score& problem, const Parallel& parallel) { dispatch<ScoreAll>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
