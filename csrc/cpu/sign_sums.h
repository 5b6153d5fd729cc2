// The micro-kernel of the gradients (E2): the two sign sums over a tile of pairs, in one vector of dimensions,
//     query_sums[n]     += sum_m g[n, m] sgn(q_n - r_m)        (A of E2)
//     reference_sums[m] += sum_n g[n, m] sgn(q_n - r_m)        (B of E2)
// Both sums share each sign. They are in units of kSignUnit (pair_math.h).
#pragma once

#include "fast_sign.h"
#include "pack.h"

namespace dissim {
namespace {

// A tile of upstream gradients, g [kTileQueries][kTileReferences]: 32 KiB of floats, which stays in L2.
constexpr int64_t kTileQueries = 64, kTileReferences = 128;

// Query rows whose values and sums stay in registers during a pass over the references. An AVX2 or NEON tile adds up a
// reference's sum in two chains, since the additions of one chain wait for one another.
#if defined(__AVX512F__)
constexpr int kRegisterQueries = 8, kChains = 1;
#else
constexpr int kRegisterQueries = 4, kChains = 2;
#endif

// `queries` is a multiple of kRegisterQueries. Values and sums are packed, [rows][lanes]. `fast`: both sides are scaled
// for fast_sign; otherwise they are multiplied by their `unscale` (fast_sign.h).
template <class A, bool need_query_sums, bool need_reference_sums, bool fast>
void sign_sums_tile(const A* query, A query_unscale, const A* reference, A reference_unscale, const A* g,
                    int64_t queries, int64_t references, A* query_sums, A* reference_sums) {
  constexpr int lanes = kLanes<A>;
  for (int64_t n = 0; n < queries; n += kRegisterQueries) {
    Vector<A> q[kRegisterQueries], sums[kRegisterQueries];
    for (int i = 0; i < kRegisterQueries; ++i) {
      q[i] = load<A>(query + (n + i) * lanes);
      if (!fast) q[i] *= query_unscale;
      if (need_query_sums) sums[i] = load<A>(query_sums + (n + i) * lanes);
    }
    const A* g_rows = g + n * kTileReferences;
#pragma GCC unroll kChains
    for (int64_t m = 0; m < references; ++m) {
      Vector<A> r = load<A>(reference + m * lanes), r_sums[kChains] = {};
      if (!fast) r *= reference_unscale;
      if (need_reference_sums) r_sums[0] = load<A>(reference_sums + m * lanes);
      for (int i = 0; i < kRegisterQueries; ++i) {
        const Vector<A> s = fast ? fast_sign<A>(q[i] - r) : sign<A>(q[i] - r);
        const A* g_nm = g_rows + i * kTileReferences + m;
        if (need_query_sums) sums[i] = multiply_add<A>(sums[i], s, g_nm);
        if (need_reference_sums) r_sums[i % kChains] = multiply_add<A>(r_sums[i % kChains], s, g_nm);
      }
      if (need_reference_sums)
        store<A>(reference_sums + m * lanes, kChains == 1 ? r_sums[0] : r_sums[0] + r_sums[kChains - 1]);
    }
    if (need_query_sums)
      for (int i = 0; i < kRegisterQueries; ++i) store<A>(query_sums + (n + i) * lanes, sums[i]);
  }
}

}  // namespace
}  // namespace dissim
