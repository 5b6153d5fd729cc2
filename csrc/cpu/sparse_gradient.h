// The gradients (E2) where few pairs are active, from the lists of these pairs (pair_lists.h).
//
//     for each pass over some blocks of dimensions:         # as many as memory allows
//         pack the queries; query_sums = 0
//         for each range of references whose lists fit:     # mostly one
//             build the lists
//             for each task, in parallel:                   # some blocks
//                 for each 512 references, each block, each reference m:
//                     reference_sums = 0                    # in registers
//                     for each active pair (n, m):
//                         t = g sgn(q_n - r_m); reference_sums += t; query_sums[n] += t
//                     write grad_reference; add to the moment of the weights
//         write grad_query and grad_weight
//
// A row of the references is read once and its gradient is written once. A task owns its blocks of dimensions, so no
// two threads add to the same number, and every sum has one fixed order.
#pragma once

#include "dim_blocks.h"
#include "fast_sign.h"
#include "moments.h"
#include "pair_lists.h"

namespace dissim {
namespace {

// Vectors of a block of dimensions: enough independent sums to hide the latency of additions, and few enough that one
// block of all queries' sums stays in L2.
constexpr int kBlockVectors = 4;

// One reference, one block: adds g sgn(q - r) over `pairs` to reference_sums and to each pair's row of query_sums.
// `fast`: `query` and `r` are scaled for fast_sign; otherwise `query` is multiplied by query_unscale and `r` is not
// scaled.
template <class A, bool need_query_sums, bool fast>
DISSIM_INLINE void add_pairs(const A* query, A query_unscale, const Vector<A> (&r)[kBlockVectors],
                             const ActivePair<A>* begin, const ActivePair<A>* end, A* query_sums,
                             Vector<A> (&reference_sums)[kBlockVectors]) {
  for (const ActivePair<A>* pair = begin; pair < end; ++pair) {
    const Vector<A> g = broadcast<A>(pair->grad);
    const int64_t row = int64_t(pair->query) * kBlockVectors * kLanes<A>;
    for (int i = 0; i < kBlockVectors; ++i) {
      const int64_t offset = row + i * kLanes<A>;
      const Vector<A> t = (fast ? 1 : query_unscale) * load<A>(query + offset) - r[i];
      const Vector<A> s = fast ? fast_sign<A>(t) : sign<A>(t);
      reference_sums[i] += g * s;
      if (need_query_sums) store<A>(query_sums + offset, load<A>(query_sums + offset) + g * s);
    }
  }
}

// Problem: HingeBackward or LogSumExpBackward.
template <class E, class Problem>
class SparseGradient {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int kBlockDims = kBlockVectors * lanes;
  static constexpr int64_t kListedReferences = 512;  // their lists stay in L1 while a task goes through its blocks

 public:
  // Whether `memory_budget` bytes are enough for a pass over one block.
  static bool fits(const Problem& p, int64_t memory_budget) { return bytes(p, 1) <= memory_budget; }

  // All gradients but that of the bias; a null gradient is not computed. grad(n, m) is a pair's upstream gradient.
  template <class Lists, class Grad>
  static void run(const Problem& p, const Parallel& parallel, int64_t memory_budget, Lists& lists, const Grad& grad) {
    Scratch<ActivePair<A>> pairs(lists.entries());
    Scratch<int32_t> positions(lists.positions());
    const auto fits = [&](int64_t blocks) { return bytes(p, blocks) <= memory_budget; };
    DimBlocks::for_each_pass(ceil_div(p.dim, kBlockDims), kBlockDims, fits, [&](const DimBlocks& blocks) {
      const int64_t taken = bytes(p, blocks.count);
      Scratch<char> memory(taken);
      Arena arena(memory);
      SparseGradient gradient(arena, p, blocks);
      gradient.run_pass(parallel, lists, pairs, positions, memory_budget - taken, grad);
    });
  }

 private:
  SparseGradient(Arena& arena, const Problem& p, const DimBlocks& blocks)
      : p_(p),
        blocks_(blocks),
        packed_queries_(arena.take<A>(p.query.rows * blocks.count * kBlockDims)),
        query_sums_(arena.take<A>(p.query.rows * blocks.count * kBlockDims)),
        query_unscale_(arena.take<A>(blocks.count)),
        center_(arena.take<double>(blocks.count * kBlockDims)),
        moments_(arena.take<double>(blocks.count * kBlockDims)) {}

  static int64_t bytes(const Problem& p, int64_t blocks) {
    Arena counted;
    SparseGradient(counted, p, DimBlocks{0, blocks});
    return counted.used();
  }

  template <class Lists, class Grad>
  void run_pass(const Parallel& parallel, Lists& lists, ActivePair<A>* pairs, int32_t* positions, int64_t memory_budget,
                const Grad& grad) {
    const int64_t tasks = min(blocks_.count, parallel.threads);
    int64_t first = 0, last = 0;  // references whose lists are in `pairs`
    do {
      last = lists.build(first, pairs, positions, memory_budget, parallel, grad);
      for_each(parallel, tasks, [&](int64_t i) {
        const int64_t begin = i * blocks_.count / tasks * kBlockDims;
        const int64_t end = (i + 1) * blocks_.count / tasks * kBlockDims;
        if (first == 0) start(begin, end);
        p_.grad_query || p_.grad_weight ? add_references<true>(lists, pairs, first, last, begin, end)
                                        : add_references<false>(lists, pairs, first, last, begin, end);
        if (last >= p_.reference.rows) finish(begin, end);
      });
      first = last;
    } while (last < p_.reference.rows);
  }

  // Here and below, d, `begin` and `end` are dimensions of this pass: dimension d is first_dim_ + d of the rows.
  void start(int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; d += kBlockDims) {
      for (int64_t n = 0; n < p_.query.rows; ++n)
        pack_vectors<E>(p_.query, 0, n, 1, p_.dim, (first_dim_ + d) / lanes, (first_dim_ + d + kBlockDims) / lanes,
                        packed_queries_ + offset(d, n), lanes);
      query_unscale_[d / kBlockDims] =
          scale_for_fast_sign<A>(packed_queries_ + offset(d, 0), p_.query.rows * kBlockVectors);
    }
    memset(query_sums_ + offset(begin, 0), 0, size_t(offset(end, 0) - offset(begin, 0)) * sizeof(A));
    memset(moments_ + begin, 0, size_t(end - begin) * sizeof(double));
    if (p_.grad_weight) find_center<E>(p_.reference, 0, first_dim_ + begin, first_dim_ + end, p_.dim, center_ + begin);
  }

  template <bool need_query_sums, class Lists>
  void add_references(const Lists& lists, const ActivePair<A>* pairs, int64_t first, int64_t last, int64_t begin,
                      int64_t end) {
    last = min(last, p_.reference.rows);
    for (; first < last; first += kListedReferences)
      for (int64_t d = begin; d < end; d += kBlockDims)
        for (int64_t m = first; m < min(first + kListedReferences, last); ++m)
          add_reference<need_query_sums>(m, d, pairs + lists.begin(m), pairs + lists.begin(m + 1));
  }

  // One reference and the block at d, with the pairs of its list.
  template <bool need_query_sums>
  void add_reference(int64_t m, int64_t d, const ActivePair<A>* pairs, const ActivePair<A>* pairs_end) {
    alignas(64) A values[kBlockDims], sums[kBlockDims];
    Vector<A> reference_sums[kBlockVectors] = {};
    if (pairs < pairs_end) {
      Vector<A> r[kBlockVectors], scaled[kBlockVectors];
      load_vectors<E>(p_.reference, 0, m, p_.dim, (first_dim_ + d) / lanes, r);
      for (int i = 0; i < kBlockVectors; ++i) {
        store<A>(values + i * lanes, r[i]);
        scaled[i] = kSignScale<A> * r[i];
      }
      const A unscale = query_unscale_[d / kBlockDims], *query = packed_queries_ + offset(d, 0);
      A* query_sums = query_sums_ + offset(d, 0);
      if (kHasFastSign<A> && unscale != 1 && all_allow_fast_sign<A>(r))
        add_pairs<A, need_query_sums, true>(query, unscale, scaled, pairs, pairs_end, query_sums, reference_sums);
      else
        add_pairs<A, need_query_sums, false>(query, unscale, r, pairs, pairs_end, query_sums, reference_sums);
    }
    for (int i = 0; i < kBlockVectors; ++i) store<A>(sums + i * lanes, reference_sums[i]);
    if (pairs < pairs_end && p_.grad_weight) add_moment<A>(values, 1, sums, center_ + d, kBlockDims, moments_ + d);
    write_block(p_.grad_reference, m, d, sums, -1 / kSignUnit<A>);
  }

  // The moment of the queries minus that of the references, which moments_ holds so far, is the gradient of the
// weights.
  void finish(int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) moments_[d] = -moments_[d];
    for (int64_t d = begin; d < end; d += kBlockDims)
      for (int64_t n = 0; n < p_.query.rows; ++n) {
        const A* sums = query_sums_ + offset(d, n);
        if (p_.grad_weight)
          add_moment<A>(packed_queries_ + offset(d, n), query_unscale_[d / kBlockDims], sums, center_ + d, kBlockDims,
                        moments_ + d);
        write_block(p_.grad_query, n, d, sums, 1 / kSignUnit<A>);
      }
    if (p_.grad_weight)
      for (int64_t d = begin; d < min(end, p_.dim - first_dim_); ++d)
        static_cast<A*>(p_.grad_weight)[first_dim_ + d] = A(moments_[d] / kSignUnit<A>);
  }

  // Writes the block at d of a row of a gradient: factor * weight * sums.
  void write_block(void* grad, int64_t row, int64_t d, const A* sums, A factor) const {
    constexpr int64_t kCacheLine = 64;
    if (!grad) return;
    const int64_t count = min(kBlockDims, p_.dim - first_dim_ - d);
    const A* weight = static_cast<const A*>(p_.weight) + first_dim_ + d;
    E* to = static_cast<E*>(grad) + row * p_.dim + first_dim_ + d;
    for (int64_t i = 0; i < count; i += kCacheLine / sizeof(E)) __builtin_prefetch(to + kPrefetchRows * p_.dim + i, 1);
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
      store_narrow<E>(to + i, broadcast<A>(factor) * load<A>(weight + i) * load<A>(sums + i));
    for (; i < count; ++i) to[i] = narrow<E>(factor * weight[i] * sums[i]);
  }

  // Of the block at d of query n in the packed arrays.
  int64_t offset(int64_t d, int64_t n) const { return d * p_.query.rows + n * kBlockDims; }

  const Problem& p_;
  const DimBlocks blocks_;  // of kBlockDims dimensions
  const int64_t first_dim_ = blocks_.first * kBlockDims;
  A *const packed_queries_, *const query_sums_;  // [blocks][rows][kBlockDims]
  A* const query_unscale_;  // [blocks], see fast_sign.h
  double *const center_, *const moments_;  // [blocks][kBlockDims]
};

}  // namespace
}  // namespace dissim
