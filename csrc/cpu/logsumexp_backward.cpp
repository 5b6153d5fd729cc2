// logsumexp_backward: E2 with the softmax of the active pairs as upstream gradients (E15), from scores that are
// computed again. Few active pairs are scored one by one; many by scans of bands of references, whose upstream
// gradients are kept while both sides' sums take them.
#include "exp.h"
#include "gradient.h"
#include "kernels.h"
#include "scan.h"
#include "sparse_gradient.h"

namespace dissim {
namespace {

constexpr int64_t kSparsePairs = 8;  // at most one of so many pairs

template <class E>
class Softmax {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const LogSumExpBackward& p, const Parallel& parallel) {
    if (p.grad_weight) memset(p.grad_weight, 0, size_t(p.dim) * sizeof(A));
    map_output(p.grad_query, p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    if (p.grad_query || p.grad_reference || p.grad_weight) Softmax(p).add(parallel);
  }

 private:
  explicit Softmax(const LogSumExpBackward& p)
      : p_(p),
        row_bytes_(ceil_div(p.reference.rows, 8)),
        scale_(*static_cast<const A*>(p.scale)),
        memory_budget_(backward_memory_budget<E>(p.query, p.reference, p.dim)) {}

  void add(const Parallel& parallel) const {
    const auto word = [&](int64_t n, int64_t m) { return bits_of(n, m); };
    PairLists<A, decltype(word)> lists(p_.query.rows, p_.reference.rows, parallel, word);
    const bool sparse = lists.count() <= p_.query.rows * p_.reference.rows / kSparsePairs && lists.fits_buffer();
    using Sparse = SparseGradient<E, LogSumExpBackward>;
    if (sparse && p_.dim && Sparse::fits(p_, memory_budget_ - lists.bytes()))
      Sparse::run(p_, parallel, memory_budget_ - lists.bytes(), lists,
                  [&](int64_t n, int64_t m) { return upstream(n, score(n, m)); });
    else
      add_bands(parallel);
  }

  // The score's gradient: grad scale exp(scale score - value).
  A upstream(int64_t n, A score) const { return upstream(n, broadcast<A>(score))[0]; }
  Vector<A> upstream(int64_t n, Vector<A> scores) const {
    const A factor = static_cast<const A*>(p_.grad)[n] * scale_, value = static_cast<const A*>(p_.value)[n];
    return factor * exp<A>(scores * scale_ - value);
  }

  A score(int64_t n, int64_t m) const {
    const A* const weight = static_cast<const A*>(p_.weight);
    const E *const q = row_of<E>(p_.query, 0, n), *const r = row_of<E>(p_.reference, 0, m);
    const bool contiguous = p_.query.dim_stride == 1 && p_.reference.dim_stride == 1;
    Vector<A> sums[2] = {};
    int64_t d = 0;
    for (; contiguous && d + 2 * lanes <= p_.dim; d += 2 * lanes)
      for (int i = 0; i < 2; ++i) {
        const int64_t at = d + i * lanes;
        sums[i] += load<A>(weight + at) * magnitude<A>(load_acc<E>(q + at) - load_acc<E>(r + at));
      }
    A total = sum<A>(sums[0] + sums[1]);
    for (; d < p_.dim; ++d) {
      const A t = to_acc(q[d * p_.query.dim_stride]) - to_acc(r[d * p_.reference.dim_stride]);
      total += weight[d] * (t < 0 ? -t : t);
    }
    return total + (p_.bias ? *static_cast<const A*>(p_.bias) : 0);
  }

  // A band's upstream gradients take half of the memory budget, the sums over it the rest.
  void add_bands(const Parallel& parallel) const {
    const int64_t band =
        max(1, memory_budget_ / 2 / (p_.query.rows * int64_t(sizeof(A))) / kTileReferences) * kTileReferences;
    const int64_t width = min(band, ceil_div(p_.reference.rows, kTileReferences) * kTileReferences);
    Scratch<A> upstream_of_band(p_.query.rows * width);
    const auto bytes = [&](int64_t chunks) {
      Arena counted;
      gradient(counted, DimBlocks{0, chunks}, parallel.threads);
      return counted.used();
    };
    const int64_t left = memory_budget_ - p_.query.rows * width * int64_t(sizeof(A));
    DimBlocks::for_each_pass(
        ceil_div(p_.dim, lanes), lanes, [&](int64_t chunks) { return bytes(chunks) <= left; },
        [&](const DimBlocks& some) {
          Scratch<char> memory(bytes(some.count));
          Arena arena(memory);
          DenseGradient<E> gradients = gradient(arena, some, parallel.threads);
          gradients.set_batch(0, parallel);
          for (int64_t m = 0; m < p_.reference.rows; m += width) {
            const int64_t columns = min(width, p_.reference.rows - m);
            fill(m, columns, width, upstream_of_band, left, parallel);
            gradients.add_head(0, parallel, typename DenseGradient<E>::Band{m, m + columns},
                               Tile{upstream_of_band, m, width});
          }
        });
  }

  // upstream_of_band[n][m - first] of references [first, first + columns).
  void fill(int64_t first, int64_t columns, int64_t width, A* upstream_of_band, int64_t memory_budget,
            const Parallel& parallel) const {
    AllPairs<E> pairs{
        p_.query, p_.reference, 1, 1, p_.dim, static_cast<const A*>(p_.weight), static_cast<const A*>(p_.bias)};
    pairs.reference.data = row_of<E>(p_.reference, 0, first);
    pairs.reference.rows = columns;
    pairs.memory_budget = memory_budget;
    scan<E>(pairs, partition_work(pairs, parallel.threads), parallel, [&](const ScoreBlock<A>& block) {
      for (int64_t i = 0; i < block.rows; ++i) {
        const int64_t n = block.row + i;
        const uint64_t active = bits_of(n, first + block.column);
        A g[kBlockColumns];
        for (int64_t j = 0; j < kBlockColumns; j += lanes)
          store<A>(g + j, where<A>(mask_of_bits<A>(active >> j), upstream(n, load<A>(block[i] + j))));
        memcpy(upstream_of_band + n * width + block.column, g, size_t(block.columns) * sizeof(A));
      }
    });
  }

  // As DenseGradient takes the upstream gradients of a tile of pairs.
  struct Tile {
    const A* upstream;
    int64_t first, width;
    bool operator()(int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) const {
      for (int64_t i = 0; i < rows; ++i)
        memcpy(g + i * kTileReferences, upstream + (n + i) * width + m - first, size_t(columns) * sizeof(A));
      return true;
    }
  };

  DenseGradient<E> gradient(Arena& arena, const DimBlocks& some, int threads) const {
    A* const grad_weight = static_cast<A*>(p_.grad_weight);
    return {arena,
            p_.query,
            p_.reference,
            1,
            p_.dim,
            some,
            threads,
            static_cast<const A*>(p_.weight),
            static_cast<E*>(p_.grad_query),
            static_cast<E*>(p_.grad_reference),
            grad_weight ? grad_weight + some.first * lanes : nullptr};
  }

  // Up to 64 active bits of a row from reference m on, a multiple of 8.
  uint64_t bits_of(int64_t n, int64_t m) const {
    const int64_t bytes = min(8, row_bytes_ - m / 8);
    uint64_t word = 0;
    if (bytes > 0) memcpy(&word, p_.active + n * row_bytes_ + m / 8, size_t(bytes));
    return word;
  }

  const LogSumExpBackward& p_;
  const int64_t row_bytes_;
  const A scale_;
  const int64_t memory_budget_;
};

}  // namespace

namespace DISSIM_ISA {
void logsumexp_backward(const LogSumExpBackward& problem, const Parallel& parallel) {
  dispatch<Softmax>(problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
