// The active pairs (E12) as a sparse matrix in compressed sparse column (CSC) form: for each reference, the queries of
// its active pairs in ascending order, with the upstream gradients. Input is one bit per pair, query by query.
//
//     active bits        columns                          entries {query, grad}
//     q0: 0 1 0 1        r0: begin(0) = 0, begin(1) = 1   {q1, g10}
//     q1: 1 1 0 0        r1: begin(1) = 1, begin(2) = 3   {q0, g01} {q1, g11}
//                        r2: begin(2) = 3, begin(3) = 3
//                        r3: begin(3) = 3, begin(4) = 4   {q0, g03}
//
// This transposition is a counting sort. A task has 512 references, whose bits are one cache line of each query's bits.
// If there are more pairs than a buffer holds, the lists are built for one range of references after another.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

// Writes offset + i for every set bit i of a word, ascending, and returns the end of these numbers. It writes kUnroll
// numbers at a time, so up to kUnroll numbers from that end on are overwritten. A loop over the set bits alone would
// mispredict its last branch for most words.
constexpr int kUnroll = 4;
DISSIM_INLINE int32_t* write_set_bits(uint64_t bits, int32_t offset, int32_t* to) {
  constexpr uint64_t last_bit = uint64_t(1) << 63;  // __builtin_ctzll is undefined for 0
  int32_t* const end = to + __builtin_popcountll(bits);
  do {
    for (int i = 0; i < kUnroll; ++i, bits &= bits - 1) to[i] = offset + __builtin_ctzll(bits | last_bit);
    to += kUnroll;
  } while (to < end);
  return end;
}

// An entry of a reference's list.
template <class A>
struct ActivePair {
  int32_t query;
  A grad;
};

// load_bits(n, m): the active bits of query n and references m to m + 63, with m a multiple of 64; 0 past the last one.
template <class A, class LoadBits>
class PairLists {
 public:
  // Counts the active pairs.
  PairLists(int64_t queries, int64_t references, const Parallel& parallel, const LoadBits& load_bits)
      : queries_(queries),
        words_(ceil_div(references, 64)),
        load_bits_(load_bits),
        word_counts_(words_),
        begins_(words_ * 64 + 1),
        grad_sums_(words_) {
    for_each(parallel, ceil_div(words_, kLineWords), [&](int64_t line) {
      const int64_t first = line * kLineWords;
      int64_t counts[kLineWords] = {};
      for (int64_t n = 0; n < queries_; ++n)
        for (int64_t k = 0; k < kLineWords; ++k) counts[k] += __builtin_popcountll(load_bits_(n, (first + k) * 64));
      for (int64_t k = 0; k < kLineWords && first + k < words_; ++k) word_counts_[first + k] = counts[k];
    });
    for (int64_t word = 0; word < words_; ++word) {
      count_ += word_counts_[word];
      max_word_count_ = max(max_word_count_, word_counts_[word]);
      grad_sums_[word] = 0;
    }
  }

  // The number of active pairs.
  int64_t count() const { return count_; }
  // Whether the buffer can hold the lists of any 64 references, and its entries the number of any query.
  bool fits_buffer() const { return max_word_count_ <= kMaxEntries && queries_ <= INT32_MAX; }

  // Entries and positions of the buffers that `build` writes to, and the bytes of both.
  int64_t entries() const { return min(count_, kMaxEntries); }
  int64_t positions() const { return entries() + ceil_div(words_, kLineWords) * kUnroll; }
  int64_t bytes() const { return scratch_bytes<ActivePair<A>>(entries()) + scratch_bytes<int32_t>(positions()); }

  // Builds the lists of references from m on, a multiple of 64, as many as fit in buffer [entries()]. Returns the first
  // reference whose list did not fit. grad(n, m) is the upstream gradient of a pair; `positions` [positions()] is
  // scratch, and threads allocate at most `memory_budget` bytes.
  template <class Grad>
  int64_t build(int64_t m, ActivePair<A>* buffer, int32_t* positions, int64_t memory_budget, const Parallel& parallel,
                const Grad& grad) {
    const int64_t first = m / 64;
    int64_t last = first, end = 0;
    for (; last < words_ && end + word_counts_[last] <= entries(); ++last) {
      begins_[last * 64] = end;
      end += word_counts_[last];
    }
    begins_[last * 64] = end;
    const int64_t lines = ceil_div(last, kLineWords) - first / kLineWords;
    for_each_with(scratch_bytes<int32_t>(queries_), memory_budget, parallel, lines, [&](int64_t i, Arena arena) {
      const int64_t line = (first / kLineWords + i) * kLineWords, begin = max(first, line);
      build_line(begin, min(last, line + kLineWords), buffer, positions + begins_[begin * 64] + i * kUnroll,
                 arena.take<int32_t>(queries_), grad);
    });
    return last * 64;
  }

  // The sum of all upstream gradients, once every list was built.
  double grad_sum() const {
    double total = 0;
    for (int64_t word = 0; word < words_; ++word) total += grad_sums_[word];
    return total;
  }

  // The list of reference m is entries [begin(m), begin(m + 1)) of the buffer.
  int64_t begin(int64_t m) const { return begins_[m]; }

 private:
  static constexpr int64_t kMaxEntries = 1 << 18, kLineWords = 8;  // 64-bit words of a cache line

  // The lists of words [first, last) of a line. `ends` [queries] is scratch: where each query's positions end.
  template <class Grad>
  void build_line(int64_t first, int64_t last, ActivePair<A>* buffer, int32_t* positions, int32_t* ends,
                  const Grad& grad) {
    int64_t count = 0, next[kLineWords * 64], list_sizes[kLineWords * 64] = {};
    for (int64_t word = first; word < last; ++word) count += word_counts_[word];
    // 1. The positions of the set bits, relative to the first reference, query by query.
    int32_t* to = positions;
    for (int64_t n = 0; n < queries_; ++n) {
      for (int64_t word = first; word < last; ++word)
        to = write_set_bits(load_bits_(n, word * 64), int32_t(word - first) * 64, to);
      ends[n] = int32_t(to - positions);
    }
    // 2. The size of each list, and with it the beginning.
    for (int64_t i = 0; i < count; ++i) ++list_sizes[positions[i]];
    int64_t end = begins_[first * 64];
    for (int64_t j = 0; j < (last - first) * 64; ++j) {
      begins_[first * 64 + j] = next[j] = end;
      end += list_sizes[j];
    }
    // 3. Each pair goes to the next free entry of its reference's list.
    double total = 0;
    for (int64_t n = 0, i = 0; n < queries_; ++n) {
      double query_total = 0;
      for (; i < ends[n]; ++i) {
        const A g = grad(n, first * 64 + positions[i]);
        buffer[next[positions[i]]++] = {int32_t(n), g};
        query_total += g;
      }
      total += query_total;
    }
    grad_sums_[first] = total;
  }

  const int64_t queries_, words_;  // 64-bit words of a query's bits
  const LoadBits load_bits_;
  Scratch<int64_t> word_counts_, begins_;  // pairs of 64 references together; where the list of each one begins
  Scratch<double> grad_sums_;  // of the pairs that build_line took together, at the first of their words
  int64_t count_ = 0, max_word_count_ = 0;
};

}  // namespace
}  // namespace dissim
