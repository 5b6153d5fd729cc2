// Labels of 64 references at a time as bits.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

// As same_labels, for a count the compiler knows or does not.
DISSIM_INLINE uint64_t compared_labels(const int64_t* labels, int64_t label, int64_t count) {
  using V = VectorOf<double>::integer;
  constexpr int lanes = kLanes<double>;
  const V wanted = label - V{};
  uint64_t same = 0;
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    V some;
    memcpy(&some, labels + j, sizeof some);
    same |= uint64_t(bits<double>(some == wanted)) << j;
  }
  for (; j < count; ++j) same |= uint64_t(labels[j] == label) << j;
  return same;
}

// Bit j: labels[j] == label, for j < count <= 64.
inline uint64_t same_labels(const int64_t* labels, int64_t label, int64_t count) {
  return count == 64 ? compared_labels(labels, label, 64) : compared_labels(labels, label, count);
}

// The bits of the first `count` <= 64 references but for one, which may lie outside.
DISSIM_INLINE uint64_t all_but(int64_t count, int64_t one) {
  const uint64_t all = count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0);
  return one >= 0 && one < count ? all & ~(uint64_t(1) << one) : all;
}

}  // namespace
}  // namespace dissim
