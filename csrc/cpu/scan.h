// Scores all pairs of queries and references (E1) block by block, and calls an epilogue with each block of scores:
// `score` stores it, `topk` selects from it, `hinge` sums over it. The scores are never in memory all at once.
//
// The work of one batch entry is split into tasks:
//
//                       references (columns)
//                   chunk 0   chunk 1   chunk 2   chunk 3       a chunk is at most kMaxChunkColumns references
//                 +---------+---------+---------+---------+
//      row part 0 |       task 0      |       task 2      |     a column part is one or more whole chunks
//   queries       +---------+---------+---------+---------+     a row part is one or more register tiles of queries
//      row part 1 |       task 1      |       task 3      |     a task is a column part of a row part; a task of small
//                 +---------+---------+---------+---------+       matrices covers several batch entries
//                  column part 0       column part 1
//
// A task works chunk by chunk, and on a part of a chunk if there is too little memory to pack a whole one:
//
//   for each chunk:
//     pack its references
//     for each kBlockRows queries of the task:
//       pack the queries
//       for each kBlockColumns of the packed references:
//         compute a ScoreBlock and call epilogue(block)
//
// A small batch of queries (at most kSmallBatchRows) is not packed, and neither are its references: the lanes of a
// vector are then dimensions (score_rows) instead of references (score_tile, max_tile).
//
// The sum of a score has an order that depends on the shape and the weights alone, not on the tasks or on the memory.
#pragma once

#include "block_scorer.h"

namespace dissim {
namespace {

// Queries of a block of scores. These queries, their scores and one panel of references stay in L2 (450 KiB at
// D = 512). The other panels of a chunk are read from L3, each once for all these queries.
constexpr int64_t kBlockRows = 120;
template <class A>
constexpr int64_t kMaxChunkColumns = 4096 / sizeof(A);
// With at most this many queries, packing the references costs more than it saves.
constexpr int64_t kSmallBatchRows = 4 * kRowQueries;
constexpr int64_t kPrefetchBytes = 6144;  // how far ahead references are prefetched that are read only once
// The smallest number of terms |q_d - r_d| for a task of its own: some 50 us, which is what waking a thread takes.
constexpr int64_t kMinTaskTerms = 1 << 21;
constexpr int64_t kTasksPerThread = 4;  // so that threads of unequal speed finish at about the same time

// Bytes of memory that a forward pass may use beside its result (csrc/dissim.h).
constexpr int64_t kBaseMemoryBudget = 8 << 20;
template <class E>
int64_t forward_memory_budget(const Rows& query, const Rows& reference, int64_t dim) {
  return 2 * (query.rows + reference.rows) * dim * int64_t(sizeof(E)) + kBaseMemoryBudget;
}

// What is scored: all pairs of two sets of rows.
template <class E>
struct AllPairs {
  Rows query, reference;
  int64_t batch, heads, dim;
  const Acc<E>* weight;  // [heads, dim]
  const Acc<E>* bias;  // [heads], or null for 0
  int64_t memory_budget = forward_memory_budget<E>(query, reference, dim);  // bytes
  bool small_batch = query.rows <= kSmallBatchRows;
  int64_t first_query = 0;  // the number of the first query in the whole problem
  // Which rows of `query` and `reference` take part, by number. Null: all of them, in order.
  const int64_t *query_list = nullptr, *reference_list = nullptr;

  int64_t query_number(int64_t n) const { return query_list ? query_list[n] : n; }
  int64_t reference_number(int64_t m) const { return reference_list ? reference_list[m] : m; }

  // The pairs of queries [begin, end). `small_batch` stays that of the whole problem, so that the scores are the same.
  // `used_bytes` of the memory budget are taken by others.
  AllPairs query_range(int64_t begin, int64_t end, int64_t used_bytes) const {
    AllPairs range = *this;
    range.query.data = row_of<E>(query, 0, begin);
    range.query.rows = end - begin;
    range.memory_budget -= used_bytes;
    range.first_query = begin;
    return range;
  }
};

// The scores of queries [row, row + rows) by references [column, column + columns), which are of one chunk.
template <class A>
struct ScoreBlock {
  int64_t batch, head, row, rows, column, columns;
  const A* scores;
  // The kBlockColumns values of one query. Those from `columns` on are undefined.
  const A* operator[](int64_t i) const { return scores + i * kBlockColumns; }
};

// How the work is split into tasks: see the diagram above.
struct Partition {
  int64_t chunk_columns;  // depends on the shape alone
  int64_t chunks, column_parts, row_parts, entries_per_task;

  int64_t chunk_of(int64_t column) const { return column / chunk_columns; }
  int64_t first_chunk(int64_t column_part) const { return column_part * chunks / column_parts; }
  int64_t column_part_of(int64_t column) const {
    int64_t part = chunk_of(column) * column_parts / chunks;
    while (first_chunk(part + 1) <= chunk_of(column)) ++part;
    return part;
  }
};

template <class E>
Partition partition_work(const AllPairs<E>& p, int64_t threads, int64_t max_column_parts = INT64_MAX) {
  const int64_t rows = p.query.rows, columns = p.reference.rows, entry_terms = rows * columns * p.dim;
  const int64_t tasks = min(kTasksPerThread * threads, max(1, p.batch * entry_terms / kMinTaskTerms));
  const int64_t tasks_per_entry = ceil_div(tasks, max(1, p.batch));
  const int64_t entries_per_task = max(1, kMinTaskTerms / 2 / max(1, entry_terms));

  // A chunk is whole panels and whole bytes of hinge's bits, and not much more than half of the references, so that
  // there is work for two threads.
  const int64_t alignment = max(kPanel<Acc<E>>, 8);
  const int64_t half_of_columns = ceil_div(ceil_div(columns, 2), alignment) * alignment;
  const int64_t chunk_columns = max(alignment, min(kMaxChunkColumns<Acc<E>>, half_of_columns));
  const int64_t chunks = ceil_div(columns, chunk_columns);
  const int64_t column_parts = max(1, min(min(chunks, tasks_per_entry), max_column_parts));

  // Every row part packs the references again. So there are no more of them than the threads need to be busy, or than
  // have enough rows each to make up for that.
  const int64_t needed = ceil_div(min(tasks_per_entry, threads), column_parts);
  const int64_t worthwhile = ceil_div(rows, 2 * kBlockRows);
  const int64_t row_parts = min(ceil_div(tasks_per_entry, column_parts), max(needed, worthwhile));
  return {chunk_columns, chunks, column_parts, row_parts, entries_per_task};
}

// The batch entries, queries and references of one task.
struct Task {
  int64_t entry_begin, entry_end, row_begin, row_end, column_begin, column_end;
};

template <class E>
int64_t number_of_tasks(const AllPairs<E>& p, const Partition& partition) {
  return ceil_div(p.batch, partition.entries_per_task) * partition.column_parts * partition.row_parts;
}

template <class E>
Task task_at(int64_t index, const AllPairs<E>& p, const Partition& partition) {
  const int64_t row_part = index % partition.row_parts;
  const int64_t column_part = index / partition.row_parts % partition.column_parts;
  const int64_t entry = index / partition.row_parts / partition.column_parts * partition.entries_per_task;
  const int64_t tiles = ceil_div(p.query.rows, kTileRows);
  const auto first_row = [&](int64_t part) { return part * tiles / partition.row_parts * kTileRows; };
  const auto first_column = [&](int64_t part) { return partition.first_chunk(part) * partition.chunk_columns; };
  return {entry,
          min(entry + partition.entries_per_task, p.batch),
          first_row(row_part),
          min(first_row(row_part + 1), p.query.rows),
          first_column(column_part),
          min(first_column(column_part + 1), p.reference.rows)};
}

// The scratch memory and the loops of one task.
template <class E>
class Scanner {
  using A = Acc<E>;

 public:
  Scanner(Arena& arena, const AllPairs<E>& pairs, const Partition& partition, const Blocking& blocking)
      : p_(pairs),
        chunk_columns_(partition.chunk_columns),
        packed_columns_(blocking.columns),
        scores_(arena.take<A>(ceil_div(blocking.rows, kTileRows) * kTileRows * kBlockColumns)),
        acc_queries_(arena.take<A>(p_.small_batch && queries_are_converted() ? blocking.rows * p_.dim : 0)),
        reference_rows_(arena.take<const E*>(packed_columns_)),
        scorer_(arena, p_.dim, p_.small_batch ? Blocking{0, 0, p_.dim} : blocking) {}

  // The largest blocking with which the scanners of `threads` fit into the memory budget, if there is one.
  static Blocking blocking(const AllPairs<E>& p, const Partition& partition, int64_t threads) {
    const int64_t tiles = ceil_div(p.query.rows, kTileRows);
    const int64_t rows = min(p.query.rows, min(kBlockRows, ceil_div(tiles, partition.row_parts) * kTileRows));
    return Blocking::largest({rows, partition.chunk_columns, p.dim}, [&](const Blocking& blocking) {
      return threads * bytes(p, partition, blocking) <= p.memory_budget;
    });
  }
  static int64_t bytes(const AllPairs<E>& p, const Partition& partition, const Blocking& blocking) {
    Arena counted;
    Scanner(counted, p, partition, blocking);
    return counted.used();
  }

  template <class Epilogue>
  void scan(int64_t batch, const Task& task, const Epilogue& epilogue) {
    for (int64_t m = task.column_begin, columns; m < task.column_end; m += columns) {
      columns = min(packed_columns_, min(chunk_columns_ - m % chunk_columns_, task.column_end - m));
      for (int64_t j = 0; j < packed_columns_; ++j)
        reference_rows_[j] = row_of<E>(p_.reference, batch, p_.reference_number(m + min(j, columns - 1)));
      for (int64_t head = 0; head < p_.heads; ++head) {
        const A* weight = p_.weight + head * p_.dim;
        const A bias = p_.bias ? p_.bias[head] : 0;
        scorer_.set_head(weight, bias);
        if (!p_.small_batch && (!head || scorer_.packs_by_head()))
          scorer_.set_references(reference_rows_, p_.reference.dim_stride, columns);
        for (int64_t n = task.row_begin; n < task.row_end; n += kBlockRows) {
          const int64_t rows = min(kBlockRows, task.row_end - n);
          set_queries(batch, n, rows);
          for (int64_t j = 0; j < columns; j += kBlockColumns) {
            const int64_t block_columns = min(kBlockColumns, columns - j);
            p_.small_batch ? score_small_batch(j, rows, block_columns, weight, bias) : scorer_.score(j, scores_);
            epilogue(ScoreBlock<A>{batch, head, p_.first_query + n, rows, m + j, block_columns, scores_});
          }
        }
      }
    }
  }

 private:
  void set_queries(int64_t batch, int64_t n, int64_t rows) {
    if (p_.small_batch) {
      for (int64_t i = 0; i < rows; ++i)
        small_batch_[i] = acc_row<E>(p_.query, batch, p_.query_number(n + i), 0, p_.dim, acc_queries_ + i * p_.dim);
    } else {
      for (int64_t i = 0; i < rows; ++i) query_rows_[i] = row_of<E>(p_.query, batch, p_.query_number(n + i));
      scorer_.set_queries(query_rows_, p_.query.dim_stride, rows);
    }
  }

  // Not inlined: the loop of score_rows needs every register.
  __attribute__((noinline)) void score_small_batch(int64_t first, int64_t rows, int64_t columns, const A* weight,
                                                   A bias) {
    // Listed rows do not follow one another in memory.
    const int64_t prefetch_rows = p_.reference_list ? 0 : ceil_div(kPrefetchBytes, max(1, p_.dim) * sizeof(E));
    const int64_t prefetch = prefetch_rows * p_.reference.row_stride;
    for (int64_t j = 0; j < columns; j += kRowGroup<A>) {
      int64_t i = 0;
      for (; i + kRowQueries <= rows; i += kRowQueries)
        score_rows<E, kRowQueries>(small_batch_ + i, reference_rows_ + first + j, p_.reference.dim_stride, prefetch,
                                   weight, bias, p_.dim, scores_ + i * kBlockColumns + j, kBlockColumns);
      for (; i < rows; ++i)
        score_rows<E, 1>(small_batch_ + i, reference_rows_ + first + j, p_.reference.dim_stride, prefetch, weight, bias,
                         p_.dim, scores_ + i * kBlockColumns + j, kBlockColumns);
    }
  }

  // Whether acc_row copies a query.
  bool queries_are_converted() const { return sizeof(E) != sizeof(A) || p_.query.dim_stride != 1; }

  const AllPairs<E>& p_;
  const int64_t chunk_columns_, packed_columns_;
  const A* small_batch_[kSmallBatchRows];  // its queries in the accumulator dtype
  const E* query_rows_[kBlockRows];
  A *const scores_, *const acc_queries_;
  const E** const reference_rows_;
  BlockScorer<E> scorer_;
};

// Calls epilogue(block) for blocks that together cover all pairs, in any order and on any thread. The blocks of one
// chunk and of one query follow one another on one thread, with ascending columns.
template <class E, class Epilogue>
void scan(const AllPairs<E>& p, const Partition& partition, const Parallel& parallel, const Epilogue& epilogue) {
  const int64_t tasks = number_of_tasks(p, partition);
  const Blocking blocking = Scanner<E>::blocking(p, partition, min(tasks, parallel.threads));
  const int64_t bytes = Scanner<E>::bytes(p, partition, blocking);
  for_each_with(bytes, p.memory_budget, parallel, tasks, [&](int64_t index, Arena arena) {
    const Task task = task_at(index, p, partition);
    Scanner<E> scanner(arena, p, partition, blocking);
    for (int64_t batch = task.entry_begin; batch < task.entry_end; ++batch) scanner.scan(batch, task, epilogue);
  });
}

}  // namespace
}  // namespace dissim
