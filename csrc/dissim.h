// The contract of every compiled entry point: shapes, units, who owns what. Torch-free: the bindings
// (torch_bindings.cpp, numpy_bindings.cpp) fill these structs from their own tensors. Pointers are borrowed for the
// length of a call; strides count elements; outputs are contiguous and wholly overwritten.
// "Acc" is the accumulate type: double for float64, float for the other three (contract.py has the same table).
#pragma once

#include <cstdint>

namespace dissim {

enum class Dtype : int { float16, bfloat16, float32, float64 };

// A batch of matrices [batch, rows, D]; a stride of 0 repeats.
struct Rows {
  const void* data;
  int64_t rows;
  int64_t batch_stride, row_stride, dim_stride;
};

// How an entry point runs on many threads: each(context, worker, i) is called once for every i < count, in any order,
// by workers < threads of which each does one thing at a time. It throws nothing; `run` may, before the first call.
// Results never depend on `threads`: work is cut by shape alone and every sum has a fixed order.
struct Parallel {
  void (*run)(int threads, int64_t count, void (*each)(void* context, int worker, int64_t i), void* context);
  int threads;
};
constexpr int kMostThreads = 1024;  // that a call uses

// Memory: an entry point takes what it needs beside its outputs before the first task begins and throws
// std::bad_alloc where there is none, with nothing left behind. With N and M rows of one batch entry and values of
// `dtype`, forward takes at most 2 (N + M) D values and 8 MiB, backward 3 (N + M) D values and 8 MiB, on any number
// of threads. A thread that calls keeps 2 MiB of it for its next call.

// E1: scores[b, c, n, m] = bias[c] + sum_d weight[c, d] |query[b, n, d] - reference[b, m, d]|.
struct Score {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // wide [heads, dim]
  const void* bias;    // wide [heads], or null for 0
  void* scores;        // dtype [batch, heads, query.rows, reference.rows]
};

// E2: the gradients of `Score` for an upstream gradient; a null output is not computed.
struct ScoreBackward {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // wide [heads, dim]
  const void* grad;    // dtype [batch, heads, query.rows, reference.rows], by these strides
  int64_t grad_batch_stride, grad_head_stride, grad_row_stride, grad_column_stride;
  void* grad_query;      // dtype [batch, query.rows, dim]
  void* grad_reference;  // dtype [batch, reference.rows, dim]
  void* grad_weight;     // wide [heads, dim]
};

// The k best references of each query by E1, best first, equal scores by lower index, NaN after every number. Places
// for which there is no candidate left hold NaN and index -1.
struct TopK {
  Dtype dtype;
  int64_t dim, k;
  bool largest;
  Rows query, reference;  // one batch entry
  const void* weight;     // wide [dim]
  const void* bias;       // wide [1], or null for 0
  const int64_t* exclude_index;                          // [query.rows] or null: a reference row barred, -1 for none
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows] or both null: equal is barred
  void* scores;      // wide [query.rows, k]
  int64_t* indices;  // [query.rows, k]
};

// Rows as codes of 8 bits (E10). Column c of the codes is dimension dim_order[c] of the rows, of one sign of weight
// within a group of kCodeGroup columns: code = round((x - offset) * inv_scale), clamped to 0 and max_code. Steps are
// |weight| / inv_scale, the same in every column, so that sums over columns are in steps; spare columns of a group have
// inv_scale and max_code 0. Codes lie in panels of kCodePanel rows, [panels, groups, kCodePanel, kCodeGroup]; rows and
// columns that fill up a panel or a group have code 0, and such rows error 0.
constexpr int64_t kCodePanel = 16, kCodeGroup = 8;
// Errors are steps; this many for a row that no bound is known for, which any row of scores may beat or not.
constexpr int32_t kUnbounded = 1 << 29;

struct Quantize {
  Dtype dtype;
  int64_t dim, groups;
  Rows rows;  // one batch entry
  const int64_t* dim_order;  // [groups * kCodeGroup]
  const void *offset, *inv_scale, *max_code;  // wide [groups * kCodeGroup]
  int64_t positive;  // so many groups have weights above 0, the others below
  double step, extra;  // what a step is worth; steps to add to each error
  uint8_t* codes;
  int32_t* error_bounds;  // [panels * kCodePanel]
  double* bases;  // [rows] for queries: the score without bias of a reference at no step from it; null for references
};

// The least and the greatest value of each dimension, of the values a bound can be known for; 0 and 0 without any.
struct Extent {
  Dtype dtype;
  int64_t dim;
  Rows rows;  // one batch entry
  void *low, *high;  // wide [dim]
};

// `TopK` by way of the codes: only references whose bound allows it are scored, `rescored` [query.rows] of them: those
// whose bound reaches a score that the k best reach, the k-th best itself or one that is known before.
struct QuantizedTopK {
  TopK topk;
  int64_t groups;
  const int64_t* positive;  // [1], as in `Quantize`; where the codes are, so that no host waits for a device
  const double* step;  // [1], likewise
  const uint8_t *query_codes, *reference_codes;
  const int32_t *query_errors, *reference_errors;
  const double* query_bases;  // with bias
  int64_t* rescored;
};

// The two classes of a labelled problem's hinge, max(0, margin - y s) summed over each query's pairs, and one bit for
// each pair: 1 where it is kept and y s < margin (E12).
struct Hinge {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // wide [dim]
  const void* bias;  // wide [1], or null for 0
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows]
  const int64_t* exclude_index;  // [query.rows] or null: a reference row that makes no pair with the query, -1 for none
  double margin;
  int64_t num_hard_negatives;  // of a query's negatives only this many with the highest scores are kept; -1: all
  void *positive, *negative;  // wide [query.rows]
  uint8_t* active;  // [query.rows, ceil(reference.rows / 8)], lowest bit first, spare bits 0
};

// The gradients of `Hinge` from its bits: the upstream gradient of a pair is -grad_positive[n] or grad_negative[n]
// where the pair is active, else 0. A null output is not computed.
struct HingeBackward {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;
  const void* weight;  // wide [dim]
  const int64_t *query_labels, *reference_labels;
  const void *grad_positive, *grad_negative;  // wide [query.rows]
  const uint8_t* active;
  void* grad_query;  // dtype [query.rows, dim]
  void* grad_reference;  // dtype [reference.rows, dim]
  void* grad_weight;  // wide [dim]
  void* grad_bias;  // wide [1]
};

// The log-sum-exp of scale times each query's scores over the references that are kept, its mean score under the
// softmax, and one bit for each pair: 1 where backward needs it (E15). Without any kept pair -infinity and 0.
struct LogSumExp {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  const void* scale;  // acc [1]
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows], or both null: all are kept
  const int64_t* exclude_index;  // [query.rows] or null: a reference row that is not kept, -1 for none
  bool among_same;  // with labels: keep the references of the query's label, or the others
  void *value, *mean_score;  // acc [query.rows]
  uint8_t* active;  // [query.rows, ceil(reference.rows / 8)], lowest bit first, spare bits 0
};

// The gradients of `LogSumExp` from its bits: the upstream gradient of a pair is grad[n] scale exp(scale s - value[n])
// where the pair is active, else 0. A null output is not computed.
struct LogSumExpBackward {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;
  const void *weight, *bias, *scale;
  const void *grad, *value;  // acc [query.rows]
  const uint8_t* active;
  void* grad_query;  // dtype [query.rows, dim]
  void* grad_reference;  // dtype [reference.rows, dim]
  void* grad_weight;  // acc [dim]
};

// For listed pairs, the number of references of the query that come before each: those of a larger score, or of the
// same score and a lower index. Each query's list is sorted that way; an index may lie outside the references.
struct Rank {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  const int64_t* offsets;  // [query.rows + 1], ascending from 0
  const int64_t* indices;  // [offsets[query.rows]]
  const void* listed_scores;  // acc [offsets[query.rows]]
  int64_t* counts;  // [offsets[query.rows]]
  uint8_t* nan_rows;  // [query.rows], 0 or 1: whether a score of the query is NaN
};

// Every entry point by its problem and its name: row(Problem, name). CUDA has the first six; there rows become codes
// in plain torch (backends/codes.py).
#define DISSIM_CUDA_ENTRY_POINTS(row)                                                    \
  row(Score, score) row(ScoreBackward, score_backward) row(TopK, topk) row(Hinge, hinge) \
      row(HingeBackward, hinge_backward) row(QuantizedTopK, quantized_topk)
#define DISSIM_ENTRY_POINTS(row)                                                                                   \
  DISSIM_CUDA_ENTRY_POINTS(row)                                                                                    \
  row(Extent, extent) row(Quantize, quantize) row(LogSumExp, logsumexp) row(LogSumExpBackward, logsumexp_backward) \
      row(Rank, rank)

// The entry points as one instruction set compiled them.
struct Kernels {
  const char* isa;
#define DISSIM_POINTER(Problem, name) void (*name)(const Problem&, const Parallel&);
  DISSIM_ENTRY_POINTS(DISSIM_POINTER)
#undef DISSIM_POINTER
};

// The best set this machine runs, or the one named by the environment variable DISSIM_ISA; chosen once.
// Null if that name is unknown or the machine cannot run it.
const Kernels* kernels();
// Null-terminated: every instruction set that was compiled, best first, and whether this machine can run it.
const Kernels* const* compiled_kernels();
bool can_run(const Kernels&);

}  // namespace dissim
