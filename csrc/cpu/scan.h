// The scores of all pairs (E1), block by block, to whoever consumes them: score stores, topk selects, hinge adds up.
// Lanes are reference rows in packed panels (score_tile) or, for few queries, dimensions (score_rows). Every score
// is a sum in an order that depends on the shape and the weights alone, however the work is cut and however much is
// packed at a time.
#pragma once

#include "block_scorer.h"

namespace dissim {
namespace {

// Most queries of a block. They, their scores and one panel of references live in L2 (450 KiB at D = 512); the other
// panels of a chunk, packed at a time, come from L3, each once for all queries.
constexpr int64_t kBlockRows = 120;
template <class A>
constexpr int64_t kChunk = 4096 / sizeof(A);
constexpr int64_t kFewRows = 4 * kRowQueries;  // packing references costs what it saves in scoring them so often
constexpr int64_t kSpareRoom = 8 << 20;  // bytes that a call may take beside twice its rows
constexpr int64_t kBytesAhead = 6144;  // of references that are read once
constexpr int64_t kTaskWork = 1 << 21;  // pairs times dimensions worth a task: some 50 us, as long as a thread wakes

// Bytes that a forward pass may take beside its result.
template <class E>
int64_t forward_room(const Rows& query, const Rows& reference, int64_t dim) {
  return 2 * (query.rows + reference.rows) * dim * int64_t(sizeof(E)) + kSpareRoom;
}

template <class E>
struct Pairs {
  Rows query, reference;
  int64_t batch, heads, dim;
  const Acc<E>* weight;  // [heads, dim]
  const Acc<E>* bias;  // [heads], or null for 0
  int64_t room = forward_room<E>(query, reference, dim);  // bytes
  bool few = query.rows <= kFewRows;
  int64_t first = 0;  // of the queries, in those of the problem

  // Those of queries [begin, end), scored as they are with the others, in the room that is left.
  Pairs of_queries(int64_t begin, int64_t end, int64_t taken) const {
    Pairs some = *this;
    some.query.data = row_of<E>(query, 0, begin);
    some.query.rows = end - begin;
    some.room -= taken;
    some.first = begin;
    return some;
  }
};

// Scores of queries [row, row + rows) and references [column, column + columns), which are of one chunk.
template <class A>
struct Block {
  int64_t batch, head, row, rows, column, columns;
  const A* scores;
  // kBlockColumns values of one query; behind `columns` of them there is nothing of interest.
  const A* operator[](int64_t i) const { return scores + i * kBlockColumns; }
};

// How the work is cut into tasks: `parts` runs of chunks of `width` references, which depends on the shape alone, by
// `row_parts` runs of rows, by batch entries.
struct Cuts {
  int64_t width, chunks, parts, row_parts, entries;
  int64_t chunk_of(int64_t column) const { return column / width; }
  int64_t part_of(int64_t column) const {
    int64_t part = chunk_of(column) * parts / chunks;
    while ((part + 1) * chunks / parts <= chunk_of(column)) ++part;
    return part;
  }
};

template <class E>
Cuts cut(const Pairs<E>& p, int64_t threads, int64_t most_parts = INT64_MAX) {
  const int64_t unit = max(kPanel<Acc<E>>, 8);  // whole panels, and whole bytes of hinge's bits
  const int64_t rows = p.query.rows, columns = p.reference.rows, work = rows * columns * p.dim;
  const int64_t tasks = min(4 * threads, max(1, p.batch * work / kTaskWork));
  const int64_t wanted = ceil_div(tasks, max(1, p.batch));
  const int64_t width = max(unit, min(kChunk<Acc<E>>, ceil_div(ceil_div(columns, 2), unit) * unit));
  const int64_t chunks = ceil_div(columns, width), parts = max(1, min(min(chunks, wanted), most_parts));
  // Parts of rows each pack the columns anew: as many as threads need, or have rows enough.
  const int64_t needed = ceil_div(min(wanted, threads), parts), worth = ceil_div(rows, 2 * kBlockRows);
  const int64_t row_parts = min(ceil_div(wanted, parts), max(needed, worth));
  return {width, chunks, parts, row_parts, max(1, kTaskWork / 2 / max(1, work))};
}

// One task's scratch and loops.
template <class E>
class Scanner {
  using A = Acc<E>;

 public:
  Scanner(Arena& arena, const Pairs<E>& pairs, const Cuts& cuts, const Blocking& blocking)
      : p_(pairs),
        width_(cuts.width),
        packed_(blocking.columns),
        scores_(arena.take<A>(ceil_div(blocking.rows, kTileRows) * kTileRows * kBlockColumns)),
        wide_(arena.take<A>(p_.few && copies() ? blocking.rows * p_.dim : 0)),
        from_(arena.take<const E*>(packed_)),
        scorer_(arena, p_.dim, p_.few ? Blocking{0, 0, p_.dim} : blocking) {}

  // What fits `threads` of them into the room of a call, if anything does.
  static Blocking blocking(const Pairs<E>& p, const Cuts& cuts, int64_t threads) {
    const int64_t tiles = ceil_div(p.query.rows, kTileRows);
    const int64_t rows = min(p.query.rows, min(kBlockRows, ceil_div(tiles, cuts.row_parts) * kTileRows));
    return Blocking::largest({rows, cuts.width, p.dim},
                             [&](const Blocking& b) { return threads * bytes(p, cuts, b) <= p.room; });
  }
  static int64_t bytes(const Pairs<E>& p, const Cuts& cuts, const Blocking& blocking) {
    Arena counted;
    Scanner(counted, p, cuts, blocking);
    return counted.used();
  }

  template <class Consume>
  void scan(int64_t batch, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
            const Consume& consume) {
    for (int64_t m = column_begin, columns; m < column_end; m += columns) {
      columns = min(packed_, min(width_ - m % width_, column_end - m));
      for (int64_t j = 0; j < packed_; ++j) from_[j] = row_of<E>(p_.reference, batch, m + min(j, columns - 1));
      for (int64_t head = 0; head < p_.heads; ++head) {
        const A* weight = p_.weight + head * p_.dim;
        const A bias = p_.bias ? p_.bias[head] : 0;
        scorer_.set_head(weight, bias);
        if (!p_.few && (!head || scorer_.packs_by_head()))
          scorer_.set_references(from_, p_.reference.dim_stride, columns);
        for (int64_t n = row_begin; n < row_end; n += kBlockRows) {
          const int64_t rows = min(kBlockRows, row_end - n);
          set_queries(batch, n, rows);
          for (int64_t j = 0; j < columns; j += kBlockColumns) {
            const int64_t some = min(kBlockColumns, columns - j);
            p_.few ? score_few(j, rows, some, weight, bias) : scorer_.score(j, scores_);
            consume(Block<A>{batch, head, p_.first + n, rows, m + j, some, scores_});
          }
        }
      }
    }
  }

 private:
  void set_queries(int64_t batch, int64_t n, int64_t rows) {
    if (p_.few) {
      for (int64_t i = 0; i < rows; ++i) query_[i] = acc_row<E>(p_.query, batch, n + i, 0, p_.dim, wide_ + i * p_.dim);
    } else {
      for (int64_t i = 0; i < rows; ++i) rows_[i] = row_of<E>(p_.query, batch, n + i);
      scorer_.set_queries(rows_, p_.query.dim_stride, rows);
    }
  }

  // Not inlined: a step needs every register.
  __attribute__((noinline)) void score_few(int64_t first, int64_t rows, int64_t columns, const A* weight, A bias) {
    const int64_t ahead = ceil_div(kBytesAhead, max(1, p_.dim) * sizeof(E)) * p_.reference.row_stride;
    for (int64_t j = 0; j < columns; j += kRowGroup<A>) {
      int64_t i = 0;
      for (; i + kRowQueries <= rows; i += kRowQueries)
        score_rows<E, kRowQueries>(query_ + i, from_ + first + j, p_.reference.dim_stride, ahead, weight, bias, p_.dim,
                                   scores_ + i * kBlockColumns + j, kBlockColumns);
      for (; i < rows; ++i)
        score_rows<E, 1>(query_ + i, from_ + first + j, p_.reference.dim_stride, ahead, weight, bias, p_.dim,
                         scores_ + i * kBlockColumns + j, kBlockColumns);
    }
  }

  // Whether acc_row copies.
  bool copies() const { return sizeof(E) != sizeof(A) || p_.query.dim_stride != 1; }

  const Pairs<E>& p_;
  const int64_t width_, packed_;  // references of a chunk, and packed at a time
  const A* query_[kFewRows];
  const E* rows_[kBlockRows];
  A *const scores_, *const wide_;
  const E** const from_;
  BlockScorer<E> scorer_;
};

// Calls consume(block) for blocks that together cover all pairs, in any order and on any thread; those of a chunk and
// some rows come one after another, columns ascending.
template <class E, class Consume>
void scan(const Pairs<E>& p, const Cuts& cuts, const Parallel& parallel, const Consume& consume) {
  const int64_t rows = p.query.rows, columns = p.reference.rows;
  const int64_t tasks = ceil_div(p.batch, cuts.entries) * cuts.parts * cuts.row_parts;
  const Blocking blocking = Scanner<E>::blocking(p, cuts, min(tasks, parallel.threads));
  const int64_t bytes = Scanner<E>::bytes(p, cuts, blocking);
  for_each_with(bytes, p.room, parallel, tasks, [&](int64_t task, Arena arena) {
    const int64_t row_part = task % cuts.row_parts, part = task / cuts.row_parts % cuts.parts;
    const int64_t entry = task / cuts.row_parts / cuts.parts * cuts.entries;
    const int64_t tiles = ceil_div(rows, kTileRows);
    const int64_t row_begin = row_part * tiles / cuts.row_parts * kTileRows;
    const int64_t row_end = min((row_part + 1) * tiles / cuts.row_parts * kTileRows, rows);
    const int64_t column_begin = part * cuts.chunks / cuts.parts * cuts.width;
    const int64_t column_end = min((part + 1) * cuts.chunks / cuts.parts * cuts.width, columns);
    Scanner<E> scanner(arena, p, cuts, blocking);
    for (int64_t batch = entry; batch < min(entry + cuts.entries, p.batch); ++batch)
      scanner.scan(batch, row_begin, row_end, column_begin, column_end, consume);
  });
}

}  // namespace
}  // namespace dissim
