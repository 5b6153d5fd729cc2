// The pairs that have an upstream gradient, reference by reference, from bits that lie query by query, by all threads.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

// Writes base + the place of each set bit, ascending, and returns what follows. Four at a time, for a branch that few
// bits decide is foreseen badly; so many numbers may be overwritten.
constexpr int kPlaces = 4;
DISSIM_INLINE int32_t* write_places(uint64_t bits, int32_t base, int32_t* to) {
  int32_t* const end = to + __builtin_popcountll(bits);
  do {
    for (int i = 0; i < kPlaces; ++i, bits &= bits - 1) to[i] = base + __builtin_ctzll(bits | uint64_t(1) << 63);
    to += kPlaces;
  } while (to < end);
  return end;
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
      : rows_(rows),
        words_(ceil_div(references, 64)),
        word_(word),
        counts_(words_),
        begins_(words_ * 64 + 1),
        sums_(words_) {
    for_each(parallel, ceil_div(words_, kLine), [&](int64_t line) {
      int64_t counts[kLine] = {};
      for (int64_t n = 0; n < rows_; ++n)
        for (int64_t k = 0; k < kLine; ++k) counts[k] += __builtin_popcountll(word_(n, (line * kLine + k) * 64));
      for (int64_t k = 0; k < kLine && line * kLine + k < words_; ++k) counts_[line * kLine + k] = counts[k];
    });
    for (int64_t i = 0; i < words_; ++i) all_ += counts_[i], most_ = max(most_, counts_[i]), sums_[i] = 0;
  }

  int64_t all() const { return all_; }
  // Whether 64 references have more pairs than are listed at a time.
  bool too_long() const { return most_ > kPairs; }
  // Pairs of as many references as `make` makes at a time.
  int64_t size() const { return min(all_, kPairs); }
  // Of size() pairs and what making them takes beside `room`.
  int64_t bytes() const { return scratch_bytes<Pair<A>>(size()) + scratch_bytes<int32_t>(places()); }
  int64_t places() const { return size() + ceil_div(words_, kLine) * kPlaces; }

  // Makes the lists of references from m on, a multiple of 64, which lie in pairs [size()]: grad(n, m); by way of
  // places [places()] and what fits in `room` bytes. Returns the first reference whose list did not fit.
  template <class Grad>
  int64_t make(int64_t m, Pair<A>* pairs, int32_t* places, int64_t room, const Parallel& parallel, const Grad& grad) {
    const int64_t first = m / 64;
    int64_t last = first, end = 0;
    for (; last < words_ && end + counts_[last] <= size(); ++last) {
      begins_[last * 64] = end;
      end += counts_[last];
    }
    begins_[last * 64] = end;
    const int64_t lines = ceil_div(last, kLine) - first / kLine;
    for_each_with(scratch_bytes<int32_t>(rows_), room, parallel, lines, [&](int64_t i, Arena arena) {
      const int64_t line = (first / kLine + i) * kLine, begin = max(first, line);
      list(begin, min(last, line + kLine), pairs, places + begins_[begin * 64] + i * kPlaces,
           arena.take<int32_t>(rows_), grad);
    });
    return last * 64;
  }
  // Of the upstream gradients of all pairs, once their lists were made.
  double sum() const {
    double total = 0;
    for (int64_t i = 0; i < words_; ++i) total += sums_[i];
    return total;
  }
  // Where the pairs of a reference begin, those of the one before end.
  int64_t begin(int64_t m) const { return begins_[m]; }

 private:
  static constexpr int64_t kPairs = 1 << 18, kLine = 8;  // words of a cache line

  // Of a line's words [first, last): places query by query, each's ends [rows], then sorted by counting.
  template <class Grad>
  void list(int64_t first, int64_t last, Pair<A>* pairs, int32_t* places, int32_t* ends, const Grad& grad) {
    int64_t all = 0, begins[kLine * 64], counts[kLine * 64] = {};
    for (int64_t i = first; i < last; ++i) all += counts_[i];
    int32_t* to = places;
    for (int64_t n = 0; n < rows_; ++n) {
      for (int64_t i = first; i < last; ++i) to = write_places(word_(n, i * 64), int32_t(i - first) * 64, to);
      ends[n] = int32_t(to - places);
    }
    for (int64_t i = 0; i < all; ++i) ++counts[places[i]];
    int64_t end = begins_[first * 64];
    for (int64_t j = 0; j < (last - first) * 64; ++j) {
      begins_[first * 64 + j] = begins[j] = end;
      end += counts[j];
    }
    double total = 0;
    for (int64_t n = 0, i = 0; n < rows_; ++n) {
      double sum = 0;
      for (; i < ends[n]; ++i) {
        const A g = grad(n, first * 64 + places[i]);
        pairs[begins[places[i]]++] = {int32_t(n), g};
        sum += g;
      }
      total += sum;
    }
    sums_[first] = total;
  }

  const int64_t rows_, words_;
  const Word word_;
  Scratch<int64_t> counts_, begins_;  // of 64 references together, of each
  Scratch<double> sums_;  // of the pairs that were listed together, at the first 64 of their references
  int64_t all_ = 0, most_ = 0;
};

}  // namespace
}  // namespace dissim
