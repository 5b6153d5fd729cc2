// The two sign sums of E2, A[n] = sum_m g[n, m] sgn(q_n - r_m) and B[m] = sum_n g[n, m] sgn(q_n - r_m), for every
// dimension: shared by score_backward and hinge. The sums are in units of kSignUnit.
#pragma once

#include "../pair_math.h"
#include "pack.h"

namespace dissim {
namespace {

constexpr int64_t kTileQueries = 64, kTileColumns = 128;  // a tile of g: 32 KiB of floats, in L2
constexpr int kQueries = 4;                               // query rows in registers

// One chunk against one tile of g: adds to sums_q [rows][lanes] and sums_r [columns][lanes]. `rows` is padded to
// kQueries by the caller's zeroed rows of g.
template <class A, bool of_query, bool of_reference, bool finite>
void sign_sums_tile(const A* query, const A* reference, const A* g, int64_t rows, int64_t columns, A* sums_q,
                    A* sums_r) {
  constexpr int lanes = kLanes<A>;
  for (int64_t n = 0; n < rows; n += kQueries) {
    Vector<A> q[kQueries], sums[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      q[i] = load<A>(query + (n + i) * lanes);
      if (of_query) sums[i] = load<A>(sums_q + (n + i) * lanes);
    }
    const A* row = g + n * kTileColumns;
    for (int64_t m = 0; m < columns; ++m) {
      const Vector<A> r = load<A>(reference + m * lanes);
      Vector<A> sum_r[2] = {};  // two chains: one of kQueries would wait for itself
      if (of_reference) sum_r[0] = load<A>(sums_r + m * lanes);
      for (int i = 0; i < kQueries; ++i) {
        const Vector<A> s = finite ? sign_of_finite<A>(q[i] - r) : sign<A>(q[i] - r);
        const Vector<A> weight = broadcast<A>(row[i * kTileColumns + m]);
        if (of_query) sums[i] += weight * s;
        if (of_reference) sum_r[i % 2] += weight * s;
      }
      if (of_reference) store<A>(sums_r + m * lanes, sum_r[0] + sum_r[1]);
    }
    if (of_query)
      for (int i = 0; i < kQueries; ++i) store<A>(sums_q + (n + i) * lanes, sums[i]);
  }
}

template <class A>
class SignSums {
  static constexpr int lanes = kLanes<A>;

 public:
  SignSums(int64_t queries, int64_t references, int64_t dim)
      : chunks(blocks_of(dim, lanes)),
        queries_(queries),
        references_(references),
        dim_(dim),
        padded_(blocks_of(queries, kQueries) * kQueries),
        query_(query_size()),
        reference_(reference_size()),
        sums_q_(query_size()),
        sums_r_(reference_size()),
        finite_(chunks) {}

  const int64_t chunks;
  int64_t query_size() const { return chunks * padded_ * lanes; }
  int64_t reference_size() const { return chunks * references_ * lanes; }
  const A* query_sums(int64_t chunk) const { return sums_q_ + chunk * padded_ * lanes; }
  const A* reference_sums(int64_t chunk) const { return sums_r_ + chunk * references_ * lanes; }

  template <class E>
  void pack(const Rows& query, const Rows& reference, int64_t batch, int64_t chunk) {
    const bool q = pack_chunk<E>(query, batch, chunk, padded_, query_ + chunk * padded_ * lanes);
    const bool r = pack_chunk<E>(reference, batch, chunk, references_, reference_ + chunk * references_ * lanes);
    finite_[chunk] = q && r;
  }

  // tile(n, m, rows, columns, g) fills g [rows][kTileColumns] and says whether any of it is not 0.
  template <class Tile>
  void accumulate(const Parallel& parallel, bool of_query, bool of_reference, Tile tile) {
    memset(sums_q_, 0, size_t(query_size()) * sizeof(A));
    memset(sums_r_, 0, size_t(reference_size()) * sizeof(A));
    if (of_query && of_reference && chunks >= parallel.threads) {
      sweep<true, true>(parallel, 1, tile);
    } else {  // one side, or fewer chunks than threads: cut by rows, each side on its own, in the same order of sums
      const int64_t cuts = blocks_of(2 * parallel.threads, chunks);
      if (of_query) sweep<true, false>(parallel, cuts, tile);
      if (of_reference) sweep<false, true>(parallel, cuts, tile);
    }
  }

  // E2: grad_weight[d] += sum_n q A - sum_m r B, about the mean so that a common offset does not cancel.
  void add_grad_weight(int64_t chunk, A* grad_weight, int64_t width) const {
    const A *q = query_ + chunk * padded_ * lanes, *r = reference_ + chunk * references_ * lanes;
    const A *a = query_sums(chunk), *b = reference_sums(chunk);
    for (int64_t i = 0; i < width; ++i) {
      double centre = 0, sum = 0;
      for (int64_t m = 0; m < references_; ++m) centre += r[m * lanes + i];
      centre /= double(references_);
      if (!(centre - centre == 0)) centre = 0;
      for (int64_t n = 0; n < queries_; ++n) sum += (q[n * lanes + i] - centre) * a[n * lanes + i];
      for (int64_t m = 0; m < references_; ++m) sum -= (r[m * lanes + i] - centre) * b[m * lanes + i];
      grad_weight[i] += A(sum / kSignUnit<A>);
    }
  }

 private:
  // Returns whether every value is finite. Adding 0 turns -0 into +0, so that a tie is never -0.
  template <class E>
  bool pack_chunk(const Rows& rows, int64_t batch, int64_t chunk, int64_t padded, A* to) const {
    const int64_t d = chunk * lanes, width = least(lanes, dim_ - d);
    Vector<A> residue = {};
    for (int64_t row = 0; row < padded; ++row) {
      Vector<A> v = {};
      if (row < rows.rows) {
        const E* from = row_of<E>(rows, batch, row) + d * rows.dim_stride;
        if (rows.dim_stride == 1 && width == lanes) {
          v = load_wide<E>(from) + broadcast<A>(0);
        } else {
          for (int64_t i = 0; i < width; ++i) v[i] = widen(from[i * rows.dim_stride]) + A(0);
        }
      }
      residue += v - v;
      store<A>(to + row * lanes, v);
    }
    return sum<A>(residue) == 0;
  }

  template <bool of_query, bool of_reference, class Tile>
  void sweep(const Parallel& parallel, int64_t cuts, Tile tile) {
    const int64_t ranges = least(chunks, parallel.threads);
    const int64_t rows = of_reference ? padded_ : cut_size(queries_, cuts, kTileQueries);
    const int64_t columns = of_query ? references_ : cut_size(references_, cuts, kTileColumns);
    const int64_t row_cuts = blocks_of(padded_, rows), column_cuts = blocks_of(references_, columns);
    for_each(parallel, ranges * row_cuts * column_cuts, [&](int64_t task) {
      const int64_t range = task / row_cuts / column_cuts;
      const int64_t n = task / column_cuts % row_cuts * rows, m = task % column_cuts * columns;
      sweep_block<of_query, of_reference>(range * chunks / ranges, (range + 1) * chunks / ranges, n,
                                          least(n + rows, padded_), m, least(m + columns, references_), tile);
    });
  }

  static int64_t cut_size(int64_t rows, int64_t cuts, int64_t tile) {
    return blocks_of(blocks_of(rows, cuts), tile) * tile;
  }

  template <bool of_query, bool of_reference, class Tile>
  void sweep_block(int64_t chunk_begin, int64_t chunk_end, int64_t row_begin, int64_t row_end, int64_t column_begin,
                   int64_t column_end, Tile tile) {
    Scratch<A> g(kTileQueries * kTileColumns);
    for (int64_t m = column_begin; m < column_end; m += kTileColumns)
      for (int64_t n = row_begin; n < row_end; n += kTileQueries) {
        const int64_t rows = least(kTileQueries, row_end - n), columns = least(kTileColumns, column_end - m);
        const int64_t real = least(rows, queries_ - n);
        if (!tile(n, m, real, columns, g)) continue;
        memset(g + real * kTileColumns, 0, size_t(rows - real) * kTileColumns * sizeof(A));
        for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
          const int64_t q = (chunk * padded_ + n) * lanes, r = (chunk * references_ + m) * lanes;
          if (finite_[chunk]) {
            sign_sums_tile<A, of_query, of_reference, true>(query_ + q, reference_ + r, g, rows, columns, sums_q_ + q,
                                                            sums_r_ + r);
          } else {
            sign_sums_tile<A, of_query, of_reference, false>(query_ + q, reference_ + r, g, rows, columns, sums_q_ + q,
                                                             sums_r_ + r);
          }
        }
      }
  }

  const int64_t queries_, references_, dim_, padded_;
  Scratch<A> query_, reference_, sums_q_, sums_r_;
  Scratch<bool> finite_;
};

}  // namespace
}  // namespace dissim
