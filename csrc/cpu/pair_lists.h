// The pairs that have an upstream gradient, reference by reference, from bits that lie query by query: a matrix of bits
// turned round, by all threads.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

// Bit j of rows[i] becomes bit i of rows[j]: squares of 32 bits off the diagonal change places, then those of 16 within
// all four, and so on.
inline void transpose_bits(uint64_t* rows) {
  uint64_t low = ~uint64_t(0);
  for (int size = 32; size; size /= 2) {
    low ^= low << size;
    for (int first = 0; first < 64; first += 2 * size)
      for (int i = first; i < first + size; ++i) {
        const uint64_t changed = ((rows[i] >> size) ^ rows[i + size]) & low;
        rows[i] ^= changed << size;
        rows[i + size] ^= changed;
      }
  }
}

// A pair of some reference: the query's row and the upstream gradient.
template <class A>
struct Pair {
  int32_t row;
  A grad;
};

// word(n, m): the bits of query n and 64 references from m on, a multiple of 64; behind the last they are 0.
template <class A, class Word>
class PairLists {
 public:
  PairLists(int64_t rows, int64_t references, const Parallel& parallel, const Word& word)
      : rows_(rows), words_(blocks_of(references, 64)), word_(word), counts_(words_), begins_(words_ * 64 + 1) {
    for_each(parallel, blocks_of(words_, kLine), [&](int64_t line) {
      int64_t counts[kLine] = {};
      for (int64_t n = 0; n < rows_; ++n)
        for (int64_t k = 0; k < kLine; ++k) counts[k] += __builtin_popcountll(word_(n, (line * kLine + k) * 64));
      for (int64_t k = 0; k < kLine && line * kLine + k < words_; ++k) counts_[line * kLine + k] = counts[k];
    });
    for (int64_t i = 0; i < words_; ++i) all_ += counts_[i], most_ = most(most_, counts_[i]);
  }

  int64_t all() const { return all_; }
  // Room for the pairs of as many references as `make` makes at a time.
  int64_t room() const { return least(all_, most(kPairs, most_)); }

  // Makes the lists of references from m on, a multiple of 64, which lie in pairs [room()]: grad(n, m). Returns the
  // first reference whose list did not fit.
  template <class Grad>
  int64_t make(int64_t m, Pair<A>* pairs, const Parallel& parallel, const Grad& grad) {
    const int64_t first = m / 64;
    int64_t last = first, end = 0;
    for (; last < words_ && end + counts_[last] <= room(); ++last) {
      begins_[last * 64] = end;
      end += counts_[last];
    }
    begins_[last * 64] = end;
    for_each(parallel, blocks_of(last, kLine) - first / kLine, [&](int64_t i) {
      const int64_t line = (first / kLine + i) * kLine;
      list(most(first, line), least(last, line + kLine), pairs, grad);
    });
    return last * 64;
  }
  // Of the upstream gradients of all pairs, once their lists were made: references by references, then all together.
  double sum() const {
    double total = 0;
    for (int64_t i = 0; i < words_; ++i) total += sums_[i];
    return total;
  }
  // Where the pairs of a reference begin, those of the one before end.
  int64_t begin(int64_t m) const { return begins_[m]; }

 private:
  static constexpr int64_t kPairs = 1 << 18, kLine = 8;  // words of a cache line

  // Of a line's words [first, last).
  template <class Grad>
  void list(int64_t first, int64_t last, Pair<A>* pairs, const Grad& grad) {
    const int64_t count = last - first, height = blocks_of(rows_, 64);
    Scratch<uint64_t> columns(64 * count * height);
    for (int64_t i = 0; i < height; ++i) {
      uint64_t squares[kLine][64];
      for (int64_t n = 0; n < 64; ++n)
        for (int64_t k = 0; k < count; ++k)
          squares[k][n] = i * 64 + n < rows_ ? word_(i * 64 + n, (first + k) * 64) : 0;
      for (int64_t k = 0; k < count; ++k) {
        transpose_bits(squares[k]);
        for (int64_t j = 0; j < 64; ++j) columns[(k * 64 + j) * height + i] = squares[k][j];
      }
    }
    int64_t end = begins_[first * 64];
    memset(sums_ + first, 0, size_t(count) * sizeof(double));
    for (int64_t j = 0; j < 64 * count; ++j) {
      begins_[first * 64 + j] = end;
      double sum = 0;
      for (int64_t i = 0; i < height; ++i)
        for (uint64_t left = columns[j * height + i]; left; left &= left - 1) {
          const int64_t n = i * 64 + __builtin_ctzll(left);
          pairs[end] = {int32_t(n), grad(n, first * 64 + j)};
          sum += pairs[end++].grad;
        }
      sums_[first + j / 64] += sum;
    }
  }

  const int64_t rows_, words_;
  const Word word_;
  Scratch<int64_t> counts_, begins_;  // of 64 references together, of each
  Scratch<double> sums_{words_};
  int64_t all_ = 0, most_ = 0;
};

}  // namespace
}  // namespace dissim
