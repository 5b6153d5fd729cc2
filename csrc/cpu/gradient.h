// The gradients of E2 from any source of upstream gradients, for score_backward and hinge_backward. A task owns whole
// chunks of dimensions, so no two threads ever add to one number and every sum has one fixed order. References are
// packed, summed and written block by block; only the queries' sums stay. Both sides share each sign, and the gradient
// of the weights falls out of the two sums without a third pass. Chunks have nothing to do with one another, so where
// memory is short some are done after others.
#pragma once

#include "moments.h"
#include "sign_sums.h"

namespace dissim {
namespace {

constexpr int64_t kPadding = 4;  // rows behind a chunk, so that chunks do not all fall on one set of a cache
// A load whose address ends in the same 12 bits as that of a store shortly before waits for it.
constexpr int64_t kHalfPage = 2048;

template <class E>
class Gradient {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;
  // Elements of a chunk's rows of a block of references, and of these and their sums.
  static constexpr int64_t kRows =
      (2 * ceil_div(kTileColumns * kVectorBytes + kHalfPage, 2 * kHalfPage) - 1) * kHalfPage / sizeof(A);
  static constexpr int64_t kBlock = 2 * kRows + kPadding * lanes;

 public:
  // Of dimensions [0, dim) those of some chunks, on at most `threads` threads. grad_weight [heads, chunks * lanes] is
  // added to, the other two are written; null: not computed.
  Gradient(Arena& arena, const Rows& query, const Rows& reference, int64_t heads, int64_t dim, const Chunks& chunks,
           int threads, const A* weight, E* grad_query, E* grad_reference, A* grad_weight)
      : query_(query),
        reference_(reference),
        heads_(heads),
        dim_(dim),
        first_(chunks.first),
        chunks_(chunks.count),
        padded_(ceil_div(query.rows, kQueries) * kQueries),
        stride_((padded_ + kPadding) * lanes),
        task_chunks_(ceil_div(chunks_, min(max(1, chunks_), threads))),
        weight_(weight),
        grad_query_(grad_query),
        grad_reference_(grad_reference),
        grad_weight_(grad_weight),
        packed_(arena.take<A>(chunks_ * stride_)),
        sums_(arena.take<A>(chunks_ * stride_)),
        factors_(arena.take<A>(chunks_)),
        centre_(arena.take<double>(grad_weight ? chunks_ * lanes : 0)),
        of_weight_(arena.take<double>(grad_weight ? ceil_div(reference.rows, kTileColumns) * chunks_ * lanes : 0)),
        query_total_(arena.take<A>(heads > 1 && grad_query ? query.rows * chunks_ * lanes : 0)),
        reference_total_(arena.take<A>(heads > 1 && grad_reference ? reference.rows * chunks_ * lanes : 0)),
        task_blocks_(arena.take<A>(threads * task_chunks_ * kBlock)),
        task_tiles_(arena.take<A>(threads * kTile)),
        task_factors_(arena.take<A>(threads * padded_factors())) {}

  // One batch entry: packs its queries.
  void begin(int64_t batch, const Parallel& parallel) {
    batch_ = batch;
    for_each(parallel, ceil_div(padded_, kTileQueries), [&](int64_t block) {
      const int64_t n = block * kTileQueries;
      pack_chunks<E>(query_, batch, n, min(kTileQueries, padded_ - n), dim_, first_, first_ + chunks_,
                     packed_ + n * lanes, stride_);
    });
    for_each(parallel, chunks_, [&](int64_t chunk) {
      factors_[chunk] = scale_usual<A>(packed_ + chunk * stride_, padded_);
      const int64_t d = (first_ + chunk) * lanes;
      if (grad_weight_) find_center<E>(reference_, batch, d, d + lanes, dim_, centre_ + chunk * lanes);
    });
  }

  // One head. tile(n, m, rows, columns, g) fills g [rows][kTileColumns] with the upstream gradients of a tile of pairs;
  // false: all of them are 0.
  template <class Tile>
  void add(int64_t head, const Parallel& parallel, const Tile& tile) {
    const bool of_query = grad_query_ || grad_weight_, of_reference = grad_reference_ || grad_weight_;
    if (of_query && of_reference && chunks_ >= parallel.threads) {
      sweep<true, true>(head, parallel, 1, tile);
    } else {  // one side, or fewer chunks than threads: cut by rows, each side on its own, in the same order of sums
      const int64_t cuts = ceil_div(2 * parallel.threads, chunks_);
      if (of_query) sweep<true, false>(head, parallel, cuts, tile);
      if (of_reference) sweep<false, true>(head, parallel, cuts, tile);
    }
    if (of_query)
      for_each(parallel, ceil_div(chunks_, kChunksOfTask), [&](int64_t task) {
        finish_queries(head, task * kChunksOfTask, min((task + 1) * kChunksOfTask, chunks_));
      });
  }

 private:
  static constexpr int64_t kChunksOfTask = 16;  // whole cache lines of every row
  static constexpr int64_t kTile = kTileQueries * kTileColumns;
  int64_t padded_factors() const { return ceil_div(task_chunks_, 64) * 64; }  // no line is of two threads

  template <bool of_query, bool of_reference, class Tile>
  void sweep(int64_t head, const Parallel& parallel, int64_t cuts, const Tile& tile) {
    const int64_t ranges = min(chunks_, parallel.threads);
    const int64_t rows = of_reference ? query_.rows : cut_size(query_.rows, cuts, kTileQueries);
    const int64_t columns = of_query ? reference_.rows : cut_size(reference_.rows, cuts, kTileColumns);
    const int64_t row_cuts = ceil_div(query_.rows, rows), column_cuts = ceil_div(reference_.rows, columns);
    for_each_worker(parallel, ranges * row_cuts * column_cuts, [&](int worker, int64_t task) {
      const int64_t range = task / row_cuts / column_cuts;
      const int64_t n = task / column_cuts % row_cuts * rows, m = task % column_cuts * columns;
      Task{*this,
           head,
           range * chunks_ / ranges,
           (range + 1) * chunks_ / ranges,
           task_blocks_ + worker * task_chunks_ * kBlock,
           task_tiles_ + worker * kTile,
           task_factors_ + worker * padded_factors()}
          .template run<of_query, of_reference>(n, min(n + rows, query_.rows), m, min(m + columns, reference_.rows),
                                                tile);
    });
  }

  static int64_t cut_size(int64_t rows, int64_t cuts, int64_t tile) {
    return ceil_div(ceil_div(rows, cuts), tile) * tile;
  }

  // Some chunks of one block of references after another, against all tiles of queries.
  struct Task {
    Gradient& all;
    const int64_t head, begin, end;
    A *const block, *const g, *const factors;

    A* reference(int64_t chunk) const { return block + (chunk - begin) * kBlock; }
    A* sums(int64_t chunk) const { return reference(chunk) + kRows; }

    template <bool of_query, bool of_reference, class Tile>
    void run(int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, const Tile& tile) {
      const int64_t padded = ceil_div(row_end, kQueries) * kQueries;
      if (of_query)
        for (int64_t chunk = begin; chunk < end; ++chunk)
          memset(all.sums_ + chunk * all.stride_ + row_begin * lanes, 0, size_t(padded - row_begin) * kVectorBytes);
      for (int64_t m = column_begin; m < column_end; m += kTileColumns) {
        const int64_t columns = min(kTileColumns, column_end - m);
        bool packed = false;
        if (of_reference)
          for (int64_t chunk = begin; chunk < end; ++chunk) memset(sums(chunk), 0, size_t(columns) * kVectorBytes);
        for (int64_t n = row_begin; n < row_end; n += kTileQueries) {
          const int64_t rows = min(kTileQueries, row_end - n), whole = ceil_div(rows, kQueries) * kQueries;
          if (!tile(n, m, rows, columns, g)) continue;  // E12: nothing of it is active
          if (!packed) pack(m, columns);
          packed = true;
          memset(g + rows * kTileColumns, 0, size_t(whole - rows) * kTileColumns * sizeof(A));
          for (int64_t chunk = begin; chunk < end; ++chunk)
            both_usual(all.factors_[chunk], factors[chunk - begin])
                ? add<of_query, of_reference, true>(chunk, n, whole, columns)
                : add<of_query, of_reference, false>(chunk, n, whole, columns);
        }
        if (of_reference) finish(m, columns, packed);
      }
    }

    void pack(int64_t m, int64_t columns) {
      pack_chunks<E>(all.reference_, all.batch_, m, columns, all.dim_, all.first_ + begin, all.first_ + end, block,
                     kBlock);
      for (int64_t chunk = begin; chunk < end; ++chunk)
        factors[chunk - begin] = scale_usual<A>(reference(chunk), columns);
    }

    template <bool of_query, bool of_reference, bool usual>
    void add(int64_t chunk, int64_t n, int64_t rows, int64_t columns) {
      const int64_t at = chunk * all.stride_ + n * lanes;
      sign_sums_tile<A, of_query, of_reference, usual>(all.packed_ + at, all.factors_[chunk], reference(chunk),
                                                       factors[chunk - begin], g, rows, columns, all.sums_ + at,
                                                       sums(chunk));
    }

    // The block is done: its rows of the gradient, and its part of E2's second sum for the weights.
    void finish(int64_t m, int64_t columns, bool packed) {
      if (all.grad_weight_)
        for (int64_t chunk = begin; chunk < end; ++chunk)
          all.moment(chunk, reference(chunk), factors[chunk - begin], sums(chunk), packed ? columns : 0,
                     all.of_weight_ + (m / kTileColumns * all.chunks_ + chunk) * lanes);
      if (all.grad_reference_)
        for (int64_t i = 0; i < columns; ++i)
          all.write(all.grad_reference_, all.reference_total_, all.batch_ * all.reference_.rows, m + i, head, begin,
                    end, sums(begin) + i * lanes, kBlock, -1 / kSignUnit<A>);
    }
  };

  // to[i] = sum over rows of (factor values - centre) sums, for each dimension of a chunk.
  void moment(int64_t chunk, const A* values, A factor, const A* sums, int64_t rows, double* to) const {
    double total[lanes] = {};
    for (int64_t i = 0; i < rows * lanes; i += lanes)
      add_moment<A>(values + i, factor, sums + i, centre_ + chunk * lanes, lanes, total);
    memcpy(to, total, sizeof total);
  }

  void finish_queries(int64_t head, int64_t begin, int64_t end) {
    if (grad_weight_)
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        double total[lanes];
        moment(chunk, packed_ + chunk * stride_, factors_[chunk], sums_ + chunk * stride_, query_.rows, total);
        for (int64_t i = 0; i < min(lanes, dim_ - (first_ + chunk) * lanes); ++i) {
          for (int64_t block = 0; block < ceil_div(reference_.rows, kTileColumns); ++block)
            total[i] -= of_weight_[(block * chunks_ + chunk) * lanes + i];
          grad_weight_[(head * chunks_ + chunk) * lanes + i] += A(total[i] / kSignUnit<A>);
        }
      }
    if (grad_query_)
      for (int64_t n = 0; n < query_.rows; ++n)
        write(grad_query_, query_total_, batch_ * query_.rows, n, head, begin, end, sums_ + begin * stride_ + n * lanes,
              stride_, 1 / kSignUnit<A>);
  }

  // grad[row][d] = factor weight[d] sums[d] in the dimensions of some chunks, over the heads before this one too.
  void write(E* grad, A* total, int64_t first, int64_t row, int64_t head, int64_t begin, int64_t end, const A* sums,
             int64_t stride, A factor) const {
    const A* weight = weight_ + head * dim_;
    begin += first_, end += first_;
    for (int64_t d = begin * lanes; d < min(end * lanes, dim_); d += lanes, sums += stride) {
      const int64_t width = min(lanes, dim_ - d);
      A values[lanes];
      if (width == lanes) {
        store<A>(values, broadcast<A>(factor) * load<A>(weight + d) * load<A>(sums));
      } else {
        for (int64_t i = 0; i < width; ++i) values[i] = factor * weight[d + i] * sums[i];
      }
      if (heads_ > 1)
        for (int64_t i = 0; i < width; ++i) {
          A& sum = total[(row * chunks_ - first_) * lanes + d + i];
          values[i] = sum = head ? sum + values[i] : values[i];
        }
      if (head + 1 == heads_) store_narrow<E>(grad + (first + row) * dim_ + d, values, width);
    }
  }

  const Rows &query_, &reference_;
  const int64_t heads_, dim_, first_, chunks_, padded_, stride_, task_chunks_;
  int64_t batch_ = 0;
  const A* weight_;
  E *grad_query_, *grad_reference_;
  A* grad_weight_;
  A *const packed_, *const sums_;  // the queries: [chunks][padded rows][lanes]
  A* const factors_;  // that undo the scales of chunks of queries
  double *const centre_, *const of_weight_;  // [chunks][lanes], and for each block of references [chunks][lanes]
  A *const query_total_, *const reference_total_;  // [rows][chunks][lanes]
  A *const task_blocks_, *const task_tiles_, *const task_factors_;  // of each thread
};

}  // namespace
}  // namespace dissim
