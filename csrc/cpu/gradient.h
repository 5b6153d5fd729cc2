// The gradients (E2) of all pairs from upstream gradients of any source, for score_backward and hinge_backward.
//
//     for each task, in parallel:                 # a range of the blocks of dimensions, or of that and of rows:
//     `sweep`
//         query_sums = 0
//         for each tile of 128 references:
//             reference_sums = 0
//             for each tile of 64 queries:
//                 g = upstream gradients of the pairs    # skip the tile if all of them are 0 (E12)
//                 pack the references                    # once, for the first tile that is not skipped
//                 for each block of dimensions:
//                     sign_sums_tile(...)                # adds to query_sums and reference_sums
//             write grad_reference; store sum (r - center) reference_sums for grad_weight
//     grad_weight = sum (q - center) query_sums - the stored sums; write grad_query
//
// No two tasks add to the same number, and every sum has one fixed order. The gradient of the weights needs no third
// pass over the pairs.
#pragma once

#include "dim_blocks.h"
#include "moments.h"
#include "sign_sums.h"

namespace dissim {
namespace {

template <class E>
class DenseGradient {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;  // dimensions of a block

 public:
  // The gradients of the dimensions in `blocks`, on at most `threads` threads. A null gradient is not computed.
  // grad_query and grad_reference are written. grad_weight [heads, blocks.count * lanes] is added to.
  DenseGradient(Arena& arena, const Rows& query, const Rows& reference, int64_t heads, int64_t dim,
                const DimBlocks& blocks, int threads, const A* weight, E* grad_query, E* grad_reference, A* grad_weight)
      : query_(query),
        reference_(reference),
        heads_(heads),
        dim_(dim),
        first_block_(blocks.first),
        blocks_(blocks.count),
        padded_queries_(ceil_div(query.rows, kRegisterQueries) * kRegisterQueries),
        query_stride_((padded_queries_ + kPaddingRows) * lanes),
        task_blocks_(ceil_div(blocks_, min(max(1, blocks_), threads))),
        weight_(weight),
        grad_query_(grad_query),
        grad_reference_(grad_reference),
        grad_weight_(grad_weight),
        packed_queries_(arena.take<A>(blocks_ * query_stride_)),
        query_sums_(arena.take<A>(blocks_ * query_stride_)),
        query_unscale_(arena.take<A>(blocks_)),
        center_(arena.take<double>(grad_weight ? blocks_ * lanes : 0)),
        reference_moments_(
            arena.take<double>(grad_weight ? ceil_div(reference.rows, kTileReferences) * blocks_ * lanes : 0)),
        query_head_sums_(arena.take<A>(heads > 1 && grad_query ? query.rows * blocks_ * lanes : 0)),
        reference_head_sums_(arena.take<A>(heads > 1 && grad_reference ? reference.rows * blocks_ * lanes : 0)),
        thread_references_(arena.take<A>(threads * task_blocks_ * kReferenceStride)),
        thread_g_(arena.take<A>(threads * kTilePairs)),
        thread_unscale_(arena.take<A>(threads * unscale_stride())) {}

  // References [begin, end).
  struct Band {
    int64_t begin, end;
    int64_t rows() const { return end - begin; }
  };

  // Packs the queries of a batch entry. Comes before `add_head`.
  void set_batch(int64_t batch, const Parallel& parallel) {
    batch_ = batch;
    for_each(parallel, ceil_div(padded_queries_, kTileQueries), [&](int64_t tile) {
      const int64_t n = tile * kTileQueries;
      pack_vectors<E>(query_, batch, n, min(kTileQueries, padded_queries_ - n), dim_, first_block_,
                      first_block_ + blocks_, packed_queries_ + n * lanes, query_stride_);
    });
    for_each(parallel, blocks_, [&](int64_t block) {
      query_unscale_[block] = scale_for_fast_sign<A>(packed_queries_ + block * query_stride_, padded_queries_);
      const int64_t d = (first_block_ + block) * lanes;
      if (grad_weight_) find_center<E>(reference_, batch, d, d + lanes, dim_, center_ + block * lanes);
    });
  }

  // Adds the gradients of one head; the heads come in order. The references may come in bands, whole tiles of them and
  // in order: [begin, end) of each call. load_g(n, m, rows, columns, g) writes the upstream
  // gradients of a tile of pairs to g [rows][kTileReferences]; it returns false if all of them are 0.
  template <class LoadG>
  void add_head(int64_t head, const Parallel& parallel, const LoadG& load_g) {
    add_head(head, parallel, Band{0, reference_.rows}, load_g);
  }
  template <class LoadG>
  void add_head(int64_t head, const Parallel& parallel, const Band& band, const LoadG& load_g) {
    const bool need_query_sums = grad_query_ || grad_weight_, need_reference_sums = grad_reference_ || grad_weight_;
    if (need_query_sums && need_reference_sums && blocks_ >= parallel.threads) {
      sweep<true, true>(head, parallel, 1, band, load_g);
    } else {
      // Only one side needs sums, or there are fewer blocks than threads: each side by itself, with its rows split. The
      // order of a sum is the same as above.
      const int64_t splits = ceil_div(2 * parallel.threads, blocks_);
      if (need_query_sums) sweep<true, false>(head, parallel, splits, band, load_g);
      if (need_reference_sums) sweep<false, true>(head, parallel, splits, band, load_g);
    }
    if (need_query_sums && band.end == reference_.rows)
      for_each(parallel, ceil_div(blocks_, kWriteBlocks), [&](int64_t task) {
        const int64_t begin = task * kWriteBlocks, end = min(begin + kWriteBlocks, blocks_);
        if (grad_weight_) add_grad_weight(head, begin, end);
        if (grad_query_) write_grad_query(head, begin, end);
      });
  }

 private:
  // A block of a reference tile in a thread's memory, kReferenceStride elements:
  //
  //     values [kTileReferences][lanes] | unused | sums [kTileReferences][lanes] | unused | padding
  //     ^ 0                                      ^ kSumsOffset
  //
  // The offset is an odd multiple of half a page: a load waits for an earlier store to an address with the same lowest
  // 12 bits ("4K aliasing"), and a loop stores sums while it loads values. The padding keeps blocks from starting in
  // the same set of a cache; the packed queries have it too.
  static constexpr int64_t kHalfPage = 2048, kPaddingRows = 4;
  static constexpr int64_t kSumsOffset =
      (2 * ceil_div(kTileReferences * kVectorBytes + kHalfPage, 2 * kHalfPage) - 1) * kHalfPage / sizeof(A);
  static constexpr int64_t kReferenceStride = 2 * kSumsOffset + kPaddingRows * lanes;
  static constexpr int64_t kTilePairs = kTileQueries * kTileReferences;
  static constexpr int64_t kWriteBlocks = 16;  // of a task that writes: whole cache lines of each row

  int64_t unscale_stride() const { return ceil_div(task_blocks_, 64) * 64; }  // threads share no cache line

  // All tiles of pairs by tasks. Each has a range of the blocks. A query's sum runs over all references, and a
  // reference's sum over all queries. So where only one side has sums, that side is split into `splits` ranges of rows.
  template <bool need_query_sums, bool need_reference_sums, class LoadG>
  void sweep(int64_t head, const Parallel& parallel, int64_t splits, const Band& band, const LoadG& load_g) {
    const int64_t block_ranges = min(blocks_, parallel.threads);
    const int64_t task_queries = need_reference_sums ? query_.rows : split_size(query_.rows, splits, kTileQueries);
    const int64_t task_references = need_query_sums ? band.rows() : split_size(band.rows(), splits, kTileReferences);
    const int64_t query_ranges = ceil_div(query_.rows, task_queries);
    const int64_t reference_ranges = ceil_div(band.rows(), task_references);
    for_each_worker(parallel, block_ranges * query_ranges * reference_ranges, [&](int worker, int64_t task) {
      const int64_t block_range = task / reference_ranges / query_ranges;
      const int64_t n = task / reference_ranges % query_ranges * task_queries;
      const int64_t m = band.begin + task % reference_ranges * task_references;
      Task{*this,
           head,
           block_range * blocks_ / block_ranges,
           (block_range + 1) * blocks_ / block_ranges,
           thread_references_ + worker * task_blocks_ * kReferenceStride,
           thread_g_ + worker * kTilePairs,
           thread_unscale_ + worker * unscale_stride()}
          .template run<need_query_sums, need_reference_sums>(n, min(n + task_queries, query_.rows), m,
                                                              min(m + task_references, band.end), load_g);
    });
  }

  // Rows of a range, whole tiles of them.
  static int64_t split_size(int64_t rows, int64_t splits, int64_t tile) {
    return ceil_div(ceil_div(rows, splits), tile) * tile;
  }

  // Blocks [begin, end), one tile of references after another, each against all tiles of the task's queries.
  struct Task {
    DenseGradient& all;
    const int64_t head, begin, end;
    A *const references, *const g, *const unscale;  // of this thread; `references` has the layout drawn above

    A* values(int64_t block) const { return references + (block - begin) * kReferenceStride; }
    A* sums(int64_t block) const { return values(block) + kSumsOffset; }

    template <bool need_query_sums, bool need_reference_sums, class LoadG>
    void run(int64_t query_begin, int64_t query_end, int64_t reference_begin, int64_t reference_end,
             const LoadG& load_g) {
      if (need_query_sums && reference_begin == 0) clear_query_sums(query_begin, query_end);
      for (int64_t m = reference_begin; m < reference_end; m += kTileReferences) {
        const int64_t columns = min(kTileReferences, reference_end - m);
        bool packed = false;
        if (need_reference_sums) clear_reference_sums(columns);
        for (int64_t n = query_begin; n < query_end; n += kTileQueries) {
          const int64_t rows = min(kTileQueries, query_end - n), padded = pad_queries(rows);
          if (!load_g(n, m, rows, columns, g)) continue;
          if (!packed) pack_references(m, columns);
          packed = true;
          memset(g + rows * kTileReferences, 0, size_t(padded - rows) * kTileReferences * sizeof(A));
          for (int64_t block = begin; block < end; ++block)
            can_use_fast_sign(all.query_unscale_[block], unscale[block - begin])
                ? add_tile<need_query_sums, need_reference_sums, true>(block, n, padded, columns)
                : add_tile<need_query_sums, need_reference_sums, false>(block, n, padded, columns);
        }
        if (need_reference_sums) finish_references(m, columns, packed);
      }
    }

    static int64_t pad_queries(int64_t rows) { return ceil_div(rows, kRegisterQueries) * kRegisterQueries; }

    void clear_query_sums(int64_t row_begin, int64_t row_end) {
      for (int64_t block = begin; block < end; ++block)
        memset(all.query_sums_ + block * all.query_stride_ + row_begin * lanes, 0,
               size_t(pad_queries(row_end) - row_begin) * kVectorBytes);
    }

    void clear_reference_sums(int64_t columns) {
      for (int64_t block = begin; block < end; ++block) memset(sums(block), 0, size_t(columns) * kVectorBytes);
    }

    void pack_references(int64_t m, int64_t columns) {
      pack_vectors<E>(all.reference_, all.batch_, m, columns, all.dim_, all.first_block_ + begin,
                      all.first_block_ + end, references, kReferenceStride);
      for (int64_t block = begin; block < end; ++block)
        unscale[block - begin] = scale_for_fast_sign<A>(values(block), columns);
    }

    template <bool need_query_sums, bool need_reference_sums, bool fast>
    void add_tile(int64_t block, int64_t n, int64_t rows, int64_t columns) {
      const int64_t offset = block * all.query_stride_ + n * lanes;
      sign_sums_tile<A, need_query_sums, need_reference_sums, fast>(
          all.packed_queries_ + offset, all.query_unscale_[block], values(block), unscale[block - begin], g, rows,
          columns, all.query_sums_ + offset, sums(block));
    }

    // The sums of a tile of references are complete. If all its tiles were skipped, it is not packed and its sums are
    // 0.
    void finish_references(int64_t m, int64_t columns, bool packed) {
      if (all.grad_weight_)
        for (int64_t block = begin; block < end; ++block)
          all.moment(block, values(block), unscale[block - begin], sums(block), packed ? columns : 0,
                     all.reference_moments_ + (m / kTileReferences * all.blocks_ + block) * lanes);
      if (all.grad_reference_)
        for (int64_t i = 0; i < columns; ++i)
          all.write_row(all.grad_reference_, all.reference_head_sums_, all.reference_.rows, m + i, head, begin, end,
                        sums(begin) + i * lanes, kReferenceStride, -1 / kSignUnit<A>);
    }
  };

  // to[i] = sum over `rows` of (unscale * value - center) * sum, for each dimension i of a block.
  void moment(int64_t block, const A* values, A unscale, const A* sums, int64_t rows, double* to) const {
    double total[lanes] = {};
    for (int64_t i = 0; i < rows * lanes; i += lanes)
      add_moment<A>(values + i, unscale, sums + i, center_ + block * lanes, lanes, total);
    memcpy(to, total, sizeof total);
  }

  // The gradient of the weights (E2): the moment of the queries minus those of all tiles of references.
  void add_grad_weight(int64_t head, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      double total[lanes];
      moment(block, packed_queries_ + block * query_stride_, query_unscale_[block], query_sums_ + block * query_stride_,
             query_.rows, total);
      for (int64_t i = 0; i < min(lanes, dim_ - (first_block_ + block) * lanes); ++i) {
        for (int64_t tile = 0; tile < ceil_div(reference_.rows, kTileReferences); ++tile)
          total[i] -= reference_moments_[(tile * blocks_ + block) * lanes + i];
        grad_weight_[(head * blocks_ + block) * lanes + i] += A(total[i] / kSignUnit<A>);
      }
    }
  }

  void write_grad_query(int64_t head, int64_t begin, int64_t end) {
    for (int64_t n = 0; n < query_.rows; ++n)
      write_row(grad_query_, query_head_sums_, query_.rows, n, head, begin, end,
                query_sums_ + begin * query_stride_ + n * lanes, query_stride_, 1 / kSignUnit<A>);
  }

  // grad[row] = sum over heads of factor * weight * sums, for blocks [begin, end). The heads before the last one only
  // add to head_sums [rows][blocks][lanes].
  void write_row(E* grad, A* head_sums, int64_t rows, int64_t row, int64_t head, int64_t begin, int64_t end,
                 const A* sums, int64_t stride, A factor) const {
    const A* weight = weight_ + head * dim_;
    begin += first_block_, end += first_block_;
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
          A& sum = head_sums[(row * blocks_ - first_block_) * lanes + d + i];
          values[i] = sum = head ? sum + values[i] : values[i];
        }
      if (head + 1 == heads_) store_narrow<E>(grad + (batch_ * rows + row) * dim_ + d, values, width);
    }
  }

  const Rows &query_, &reference_;
  const int64_t heads_, dim_;
  const int64_t first_block_, blocks_;  // of this pass
  const int64_t padded_queries_, query_stride_;  // rows of a packed block, and elements from one to the next
  const int64_t task_blocks_;  // the most blocks of a task
  int64_t batch_ = 0;
  const A* weight_;
  E *grad_query_, *grad_reference_;
  A* grad_weight_;
  A *const packed_queries_, *const query_sums_;  // [blocks][padded rows][lanes]
  A* const query_unscale_;  // [blocks], see fast_sign.h
  double *const center_, *const reference_moments_;  // [blocks][lanes] and [reference tiles][blocks][lanes]
  A *const query_head_sums_, *const reference_head_sums_;  // [rows][blocks][lanes]
  A *const thread_references_, *const thread_g_, *const thread_unscale_;  // memory of each thread
};

}  // namespace
}  // namespace dissim
