// hinge_backward: the gradients (E2) for the upstream gradients of the hinge (E12), which follow from the active bits
// and the labels. Where few pairs are active, it goes through a list of them, otherwise through tiles of pairs.
#include "gradient.h"
#include "kernels.h"
#include "labels.h"
#include "sparse_gradient.h"

namespace dissim {
namespace {

// Up to this fraction of active pairs, the sparse kernels are used.
constexpr double kSparseDensity = 0.25;

template <class E>
class HingeBackwardKernel {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const HingeBackward& p, const Parallel& parallel) {
    if (p.grad_weight) memset(p.grad_weight, 0, size_t(p.dim) * sizeof(A));
    map_output(p.grad_query, p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    const HingeBackwardKernel kernel(p);
    const bool only_bias = !p.grad_query && !p.grad_reference && !p.grad_weight;
    const A grad_bias = only_bias ? kernel.count_grad_bias(parallel) : kernel.compute_gradients(parallel);
    if (p.grad_bias) *static_cast<A*>(p.grad_bias) = grad_bias;
  }

 private:
  explicit HingeBackwardKernel(const HingeBackward& p) : p_(p), row_bytes_(ceil_div(p.reference.rows, 8)) {}

  // Writes all gradients but that of the bias, which is returned.
  A compute_gradients(const Parallel& parallel) const {
    const auto load_bits = [&](int64_t n, int64_t m) { return active_bits(n, m); };
    PairLists<A, decltype(load_bits)> lists(p_.query.rows, p_.reference.rows, parallel, load_bits);
    const int64_t memory_budget = backward_memory_budget<E>(p_.query, p_.reference, p_.dim);
    const double pairs = double(p_.query.rows * p_.reference.rows);
    const bool is_sparse = double(lists.count()) <= kSparseDensity * pairs && lists.fits_buffer();
    if (is_sparse && p_.dim && SparseGradient<E, HingeBackward>::fits(p_, memory_budget - lists.bytes())) {
      SparseGradient<E, HingeBackward>::run(p_, parallel, memory_budget - lists.bytes(), lists,
                                            [&](int64_t n, int64_t m) { return active_grad(n, m); });
      return A(lists.grad_sum());
    }
    compute_dense(parallel, memory_budget);
    return count_grad_bias(parallel);
  }

  void compute_dense(const Parallel& parallel, int64_t memory_budget) const {
    const auto bytes = [&](int64_t blocks) {
      Arena counted;
      dense_gradient(counted, DimBlocks{0, blocks}, parallel.threads);
      return counted.used();
    };
    const auto fits = [&](int64_t blocks) { return bytes(blocks) <= memory_budget; };
    DimBlocks::for_each_pass(ceil_div(p_.dim, lanes), lanes, fits, [&](const DimBlocks& blocks) {
      Scratch<char> memory(bytes(blocks.count));
      Arena arena(memory);
      DenseGradient<E> gradient = dense_gradient(arena, blocks, parallel.threads);
      gradient.set_batch(0, parallel);
      gradient.add_head(0, parallel, [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) {
        return load_g(n, m, rows, columns, g);
      });
    });
  }

  DenseGradient<E> dense_gradient(Arena& arena, const DimBlocks& blocks, int threads) const {
    A* const grad_weight = static_cast<A*>(p_.grad_weight);
    return {arena,
            p_.query,
            p_.reference,
            1,
            p_.dim,
            blocks,
            threads,
            static_cast<const A*>(p_.weight),
            static_cast<E*>(p_.grad_query),
            static_cast<E*>(p_.grad_reference),
            grad_weight ? grad_weight + blocks.first * lanes : nullptr};
  }

  // The upstream gradients of a tile of pairs, g [rows][kTileReferences]; false if no pair of it is active.
  bool load_g(int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) const {
    constexpr int64_t kTileWords = kTileReferences / 64;
    uint64_t active[kTileQueries][kTileWords], any = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t word = 0; word < kTileWords; ++word) any |= active[i][word] = active_bits(n + i, m + 64 * word);
    for (int64_t i = 0; any && i < rows; ++i)
      for (int64_t word = 0; word < kTileWords; ++word) {
        const int64_t first = m + 64 * word, width = min(64, columns - 64 * word);
        if (width <= 0) break;
        const uint64_t same = same_labels(p_.reference_labels + first, p_.query_labels[n + i], width);
        expand_bits(active[i][word] & same, active[i][word] & ~same, positive_grad(n + i), negative_grad(n + i),
                    g + i * kTileReferences + 64 * word);
      }
    return any;
  }

  // g[j] = `positive` where bit j of `positives` is set, `negative` where bit j of `negatives` is set, else 0; j < 64.
  static void expand_bits(uint64_t positives, uint64_t negatives, A positive, A negative, A* g) {
    for (int64_t j = 0; j < 64; j += lanes)
      store<A>(g + j, where<A>(mask_of_bits<A>(positives >> j), broadcast<A>(positive)) +
                          where<A>(mask_of_bits<A>(negatives >> j), broadcast<A>(negative)));
  }

  // The gradient of the bias, which is the sum of all upstream gradients: a query's pairs are counted by class, so that
  // only N terms are rounded.
  A count_grad_bias(const Parallel& parallel) const {
    Scratch<double> terms(p_.query.rows);
    for_each(parallel, p_.query.rows, [&](int64_t n) {
      int64_t positives = 0, all = 0;
      for (int64_t m = 0; m < p_.reference.rows; m += 64) {  // no branch on the bits: it would be mispredicted
        const uint64_t active = active_bits(n, m);
        const int64_t width = min(64, p_.reference.rows - m);
        all += __builtin_popcountll(active);
        positives += __builtin_popcountll(active & same_labels(p_.reference_labels + m, p_.query_labels[n], width));
      }
      terms[n] = double(positives) * positive_grad(n) + double(all - positives) * negative_grad(n);
    });
    double total = 0;
    for (int64_t n = 0; n < p_.query.rows; ++n) total += terms[n];
    return A(total);
  }

  // The active bits of query n and up to 64 references from m on, a multiple of 8; 0 past the last reference.
  uint64_t active_bits(int64_t n, int64_t m) const {
    const uint8_t* from = p_.active + n * row_bytes_ + m / 8;
    uint64_t word = 0;
    if (const int64_t bytes = row_bytes_ - m / 8; bytes >= 8) {
      memcpy(&word, from, 8);
    } else if (bytes > 0) {
      memcpy(&word, from, size_t(bytes));
    }
    return word;
  }

  // The upstream gradient of an active pair: of any, of a positive one, of a negative one.
  A active_grad(int64_t n, int64_t m) const {
    return p_.query_labels[n] == p_.reference_labels[m] ? positive_grad(n) : negative_grad(n);
  }
  A positive_grad(int64_t n) const { return -static_cast<const A*>(p_.grad_positive)[n]; }
  A negative_grad(int64_t n) const { return static_cast<const A*>(p_.grad_negative)[n]; }

  const HingeBackward& p_;
  const int64_t row_bytes_;  // of `active`
};

}  // namespace

namespace DISSIM_ISA {
void hinge_backward(const HingeBackward& problem, const Parallel& parallel) {
  dispatch<HingeBackwardKernel>(problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
