// Which references count for a query.
#pragma once

#include "launch.h"

namespace dissim {

// Whether reference m, which exists, is a candidate of query n.
__device__ __forceinline__ bool is_candidate(const Filter& filter, int64_t n, int64_t m) {
  if (filter.exclude_index && filter.exclude_index[n] == m) return false;
  return !filter.query_labels || (filter.query_labels[n] == filter.reference_labels[m]) == filter.among_same;
}

}  // namespace dissim
