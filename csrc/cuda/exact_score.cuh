// The score of one pair by one thread, bit-identical to that of a tile (tile.cuh).
#pragma once

#include "batch.cuh"

namespace dissim {

// One sum, in ascending order of the dimensions. Problem: a struct of dissim.h with both sides, weight and bias.
template <class E, class Problem>
__device__ __forceinline__ Acc<E> exact_score(const Problem& p, int64_t n, int64_t m) {
  using A = Acc<E>;
  const A* const weight = static_cast<const A*>(p.weight);
  A sum = 0;
#pragma unroll 4
  for (int64_t d = 0; d < p.dim; ++d)
    sum = add_term(weight[d], load_element<E>(p.query, n, d), load_element<E>(p.reference, m, d), sum);
  return sum + (p.bias ? *static_cast<const A*>(p.bias) : A(0));
}

}  // namespace dissim
