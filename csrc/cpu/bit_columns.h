// A matrix of bits turned round: what is set in a column, in ascending order of rows.
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

class BitColumns {
 public:
  // word(row, column): 64 bits of a row from a column on that is a multiple of 64; it may lie behind the last.
  template <class Word>
  BitColumns(int64_t rows, int64_t columns, const Parallel& parallel, const Word& word)
      : words_(blocks_of(rows, 64)), bits_(blocks_of(columns, kLine) * kLine * words_) {
    for_each(parallel, blocks_of(columns, kLine), [&](int64_t line) {
      uint64_t squares[kLine / 64][64];
      for (int64_t n = 0; n < rows; n += 64) {
        for (int64_t i = 0; i < 64; ++i)
          for (int64_t k = 0; k < kLine / 64; ++k)
            squares[k][i] = n + i < rows ? word(n + i, line * kLine + k * 64) : 0;
        for (int64_t k = 0; k < kLine / 64; ++k) {
          transpose_bits(squares[k]);
          for (int64_t j = 0; j < 64; ++j) bits_[(line * kLine + k * 64 + j) * words_ + n / 64] = squares[k][j];
        }
      }
    });
  }

  int64_t count(int64_t column) const {
    int64_t set = 0;
    for (int64_t i = 0; i < words_; ++i) set += __builtin_popcountll(bits_[column * words_ + i]);
    return set;
  }

  // Calls visit(row) for the set bits of a column.
  template <class Visit>
  DISSIM_INLINE void each(int64_t column, const Visit& visit) const {
    const uint64_t* words = bits_ + column * words_;
    for (int64_t i = 0; i < words_; ++i)
      for (uint64_t left = words[i]; left; left &= left - 1) visit(i * 64 + __builtin_ctzll(left));
  }

 private:
  static constexpr int64_t kLine = 512;  // columns of a cache line
  const int64_t words_;
  Scratch<uint64_t> bits_;  // [columns][words of rows]
};

}  // namespace
}  // namespace dissim
