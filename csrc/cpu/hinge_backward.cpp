// hinge_backward: E2 with the upstream gradients of E12, which the active bits and the labels give. Few active pairs
// are worked off one by one, many tile by tile without the tiles that have none.
#include "gradient.h"
#include "kernels.h"
#include "labels.h"
#include "sparse_gradient.h"

namespace dissim {
namespace {

constexpr int64_t kFewActive = 4;  // at most one of so many pairs

template <class E>
class ActivePairs {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kWords = kTileColumns / 64;

 public:
  static void run(const HingeBackward& p, const Parallel& parallel) {
    if (p.grad_weight) memset(p.grad_weight, 0, size_t(p.dim) * sizeof(A));
    map_output(p.grad_query, p.query.rows * p.dim * int64_t(sizeof(E)), parallel);
    map_output(p.grad_reference, p.reference.rows * p.dim * int64_t(sizeof(E)), parallel);
    const ActivePairs pairs(p);
    const A bias = p.grad_query || p.grad_reference || p.grad_weight ? pairs.add(parallel) : pairs.sum(parallel);
    if (p.grad_bias) *static_cast<A*>(p.grad_bias) = bias;
  }

 private:
  explicit ActivePairs(const HingeBackward& p) : p_(p), row_bytes_(ceil_div(p.reference.rows, 8)) {}

  // All but the gradient of the bias, which is returned.
  A add(const Parallel& parallel) const {
    const auto word = [&](int64_t n, int64_t m) { return bits_of(n, m); };
    PairLists<A, decltype(word)> lists(p_.query.rows, p_.reference.rows, parallel, word);
    const int64_t room = backward_room<E>(p_.query, p_.reference, p_.dim);
    const bool few = lists.all() <= p_.query.rows * p_.reference.rows / kFewActive && !lists.too_long();
    if (few && p_.dim && SparseGradient<E>::fits(p_, room - lists.bytes())) {
      SparseGradient<E>::run(p_, parallel, room - lists.bytes(), lists, [&](int64_t n, int64_t m) {
        return p_.query_labels[n] == p_.reference_labels[m] ? positive(n) : negative(n);
      });
      return A(lists.sum());
    }
    const auto bytes = [&](int64_t chunks) {
      Arena counted;
      gradient(counted, Chunks{0, chunks}, parallel.threads);
      return counted.used();
    };
    const auto fits = [&](int64_t chunks) { return bytes(chunks) <= room; };
    Chunks::each(ceil_div(p_.dim, lanes), lanes, fits, [&](const Chunks& some) {
      Scratch<char> memory(bytes(some.count));
      Arena arena(memory);
      Gradient<E> gradients = gradient(arena, some, parallel.threads);
      gradients.begin(0, parallel);
      gradients.add(0, parallel, [&](int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) {
        return tile(n, m, rows, columns, g);
      });
    });
    return sum(parallel);
  }

  Gradient<E> gradient(Arena& arena, const Chunks& some, int threads) const {
    A* const of_weight = static_cast<A*>(p_.grad_weight);
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
            of_weight ? of_weight + some.first * lanes : nullptr};
  }

  bool tile(int64_t n, int64_t m, int64_t rows, int64_t columns, A* g) const {
    uint64_t active[kTileQueries][kWords], any = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t word = 0; word < kWords; ++word) any |= active[i][word] = bits_of(n + i, m + 64 * word);
    for (int64_t i = 0; any && i < rows; ++i)
      for (int64_t word = 0; word < kWords; ++word) {
        const int64_t first = m + 64 * word, width = min(64, columns - 64 * word);
        if (width <= 0) break;
        const uint64_t same = same_labels(p_.reference_labels + first, p_.query_labels[n + i], width);
        fill(active[i][word] & same, active[i][word] & ~same, positive(n + i), negative(n + i),
             g + i * kTileColumns + 64 * word);
      }
    return any;
  }

  static void fill(uint64_t positives, uint64_t negatives, A positive, A negative, A* g) {
    for (int64_t j = 0; j < 64; j += lanes)
      store<A>(g + j, where<A>(mask_of_bits<A>(positives >> j), broadcast<A>(positive)) +
                          where<A>(mask_of_bits<A>(negatives >> j), broadcast<A>(negative)));
  }

  // The bias has the gradient of every score: counted row by row, for a sum of N terms.
  A sum(const Parallel& parallel) const {
    Scratch<double> terms(p_.query.rows);
    for_each(parallel, p_.query.rows, [&](int64_t n) {
      int64_t positives = 0, all = 0;
      for (int64_t m = 0; m < p_.reference.rows; m += 64) {  // no branch for few bits to mislead
        const uint64_t active = bits_of(n, m);
        const int64_t width = min(64, p_.reference.rows - m);
        all += __builtin_popcountll(active);
        positives += __builtin_popcountll(active & same_labels(p_.reference_labels + m, p_.query_labels[n], width));
      }
      terms[n] = double(positives) * positive(n) + double(all - positives) * negative(n);
    });
    double total = 0;
    for (int64_t n = 0; n < p_.query.rows; ++n) total += terms[n];
    return A(total);
  }

  // Up to 64 active bits of a row from reference m on, a multiple of 8.
  uint64_t bits_of(int64_t n, int64_t m) const {
    const uint8_t* from = p_.active + n * row_bytes_ + m / 8;
    uint64_t word = 0;
    if (const int64_t bytes = row_bytes_ - m / 8; bytes >= 8) {
      memcpy(&word, from, 8);
    } else if (bytes > 0) {
      memcpy(&word, from, size_t(bytes));
    }
    return word;
  }
  A positive(int64_t n) const { return -static_cast<const A*>(p_.grad_positive)[n]; }
  A negative(int64_t n) const { return static_cast<const A*>(p_.grad_negative)[n]; }

  const HingeBackward& p_;
  const int64_t row_bytes_;
};

}  // namespace

namespace DISSIM_ISA {
void hinge_backward(const HingeBackward& problem, const Parallel& parallel) {
  dispatch<ActivePairs>(problem, parallel);
}
}  // namespace DISSIM_ISA
}  // namespace dissim
