// Comparisons of a query with up to 64 references at a time, as bits of one word.
#pragma once

#include "pack.h"

namespace dissim {
namespace {

// Inlined twice below: for a count that the compiler knows, and for any.
DISSIM_INLINE uint64_t compare_labels(const int64_t* labels, int64_t label, int count) {
  using V = VectorOf<double>::integer;
  constexpr int lanes = kLanes<double>;
  const V wanted = label - V{};
  uint64_t same = 0;
  int j = 0;
  for (; j + lanes <= count; j += lanes) {
    V loaded;
    memcpy(&loaded, labels + j, sizeof loaded);
    same |= uint64_t(bits<double>(loaded == wanted)) << j;
  }
  for (; j < count; ++j) same |= uint64_t(labels[j] == label) << j;
  return same;
}

// Bit j: labels[j] == label, for j < count <= 64.
inline uint64_t same_labels(const int64_t* labels, int64_t label, int64_t count) {
  return count == 64 ? compare_labels(labels, label, 64) : compare_labels(labels, label, int(count));
}

// Bits 0 to count - 1, with count <= 64, except bit `excluded`, which may lie outside of them.
DISSIM_INLINE uint64_t all_but(int64_t count, int64_t excluded) {
  const uint64_t all = count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0);
  return excluded >= 0 && excluded < count ? all & ~(uint64_t(1) << excluded) : all;
}

// Whether reference m is a candidate of query n.
inline bool is_candidate(const Filter& filter, int64_t n, int64_t m) {
  if (filter.exclude_index && filter.exclude_index[n] == m) return false;
  return !filter.query_labels || (filter.query_labels[n] == filter.reference_labels[m]) == filter.among_same;
}

// Bit j: reference m + j is a candidate of query n, for j < count <= 64.
inline uint64_t candidates(const Filter& filter, int64_t n, int64_t m, int64_t count) {
  const uint64_t all = all_but(count, (filter.exclude_index ? filter.exclude_index[n] : -1) - m);
  if (!filter.query_labels) return all;
  const uint64_t same = same_labels(filter.reference_labels + m, filter.query_labels[n], count);
  return all & (filter.among_same ? same : ~same);
}

}  // namespace
}  // namespace dissim
