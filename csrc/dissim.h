// The contract of every compiled entry point: shapes, units, and who writes what. It does not depend on torch: the
// bindings (torch_bindings.cpp, numpy_bindings.cpp) fill these structs from their own tensors.
//
// Pointers are borrowed for the length of a call. Strides count elements. Inputs without strides and all outputs are
// contiguous. A kernel overwrites every element of an output. "dtype" below is the dtype of the rows. "acc" is the
// accumulator dtype: float64 for float64 rows, float32 for all others (contract.py has the same table).
// "E1" and the like are formulas of MATH.md.
#pragma once

#include <cstdint>

namespace dissim {

enum class Dtype : int { float16, bfloat16, float32, float64 };

// A batch of matrices [batch, rows, dim]. A stride may be 0: then all elements along that axis are the same memory.
struct Rows {
  const void* data;
  int64_t rows;
  int64_t batch_stride, row_stride, dim_stride;
};

// How an entry point uses threads. `run` calls each(context, worker, i) once for every i < count, in any order. A
// worker is a number below `threads`; no two calls with the same worker run at the same time. `each` never throws.
// `run` may throw before its first call of `each`.
// Results do not depend on `threads`: the work is divided by shape alone, and every sum has a fixed order.
struct Parallel {
  void (*run)(int threads, int64_t count, void (*each)(void* context, int worker, int64_t i), void* context);
  int threads;
};
constexpr int kMaxThreads = 1024;  // of a call

// Scratch memory: an entry point allocates what it needs in addition to its outputs before its first task begins. If
// there is not enough, it throws std::bad_alloc and leaks nothing. With N and M rows of one batch entry, a forward pass
// allocates at most 2 (N + M) D values of `dtype` and 8 MiB, a backward pass at most 3 (N + M) D values and 8 MiB, with
// any number of threads. A calling thread keeps 2 MiB of it for its next call.

// The scores of all pairs (E1):
//     scores[b, c, n, m] = bias[c] + sum_d weight[c, d] |query[b, n, d] - reference[b, m, d]|
struct Score {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // acc [heads, dim]
  const void* bias;  // acc [heads], or null for 0
  void* scores;  // out: dtype [batch, heads, query.rows, reference.rows]
};

// The gradients (E2) of `Score` for the upstream gradient `grad`. A null output is not computed.
struct ScoreBackward {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // acc [heads, dim]
  const void* grad;  // dtype [batch, heads, query.rows, reference.rows], with these strides
  int64_t grad_batch_stride, grad_head_stride, grad_row_stride, grad_column_stride;
  void* grad_query;  // out: dtype [batch, query.rows, dim]
  void* grad_reference;  // out: dtype [batch, reference.rows, dim]
  void* grad_weight;  // out: acc [heads, dim]
};

// The references that count for each query: its candidates.
struct Filter {
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows]; or both null: labels do not matter
  const int64_t* exclude_index;  // [query.rows]: a reference that does not count, -1 for none; or null
  bool among_same;  // with labels: the references of the query's label count; otherwise those of other labels
};

// The k best references of each query by their scores (E1), best first. Equal scores are ordered by lower index; NaN
// comes after every number. If a query has fewer than k candidates, the remaining places hold NaN and index -1.
struct TopK {
  Dtype dtype;
  int64_t dim, k;
  bool largest;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  Filter filter;
  void* scores;  // out: acc [query.rows, k]
  int64_t* indices;  // out: [query.rows, k]
};

// Codes of 8 bits for rows (E10).
//
// Column c of the codes stands for dimension dim_order[c] of the rows. Columns form groups of kCodeGroup; all weights
// of a group have the same sign. code = round((x - offset) * inv_scale), clamped to [0, max_code]. One step of a code
// is worth |weight| / inv_scale of the score. This is the same for all columns, so sums over columns count steps.
// Unused columns of a group have inv_scale and max_code 0.
//
// Codes are stored in panels of kCodePanel rows, [panels, groups, kCodePanel, kCodeGroup]. Unused rows of a panel and
// unused columns of a group have code 0; unused rows have error bound 0.
constexpr int64_t kCodePanel = 16, kCodeGroup = 8;
// The error bound, in steps, of a row without a bound: a search never excludes such a row.
constexpr int32_t kUnbounded = 1 << 29;

// Codes and error bounds of rows.
struct Quantize {
  Dtype dtype;
  int64_t dim, groups;
  Rows rows;  // one batch entry
  const int64_t* dim_order;  // [groups * kCodeGroup]
  const void *offset, *inv_scale, *max_code;  // acc [groups * kCodeGroup]
  int64_t positive;  // the first `positive` groups have positive weights, the others negative
  double step;  // the score of one step
  double extra;  // steps to add to each error bound
  uint8_t* codes;  // out: in panels, as above
  int32_t* error_bounds;  // out: [panels * kCodePanel], in steps
  double* bases;  // out: [rows], for queries; null for references. The score without bias of a reference whose codes
                  // are those of the query (E14)
};

// The minimum and maximum of each dimension, over the values x for which 4 x is finite: a row with another value has no
// bound. Both are 0 if there are none.
struct Extent {
  Dtype dtype;
  int64_t dim;
  Rows rows;  // one batch entry
  void *low, *high;  // out: acc [dim]
};

// `TopK` with codes: bit-identical to `TopK`, but a scan over the codes first excludes the references whose bound is
// below the k-th best score. Only the others are scored.
struct QuantizedTopK {
  TopK topk;
  int64_t groups;
  const int64_t* positive;  // [1], as in `Quantize`; on the device of the codes, so that the host need not wait for it
  const double* step;  // [1], likewise
  const uint8_t *query_codes, *reference_codes;
  const int32_t *query_errors, *reference_errors;  // their error bounds
  const double* query_bases;  // [query.rows], with the bias
  int64_t* rescored;  // out: [query.rows], how many references have a bound that reaches the search's last threshold,
                      // which is at most the k-th best score
};

// `TopK` with clusters of the references: bit-identical to `TopK`, but references whose bound (E17) is below the k-th
// best score are not scored.
struct ClusteredTopK {
  TopK topk;
  Rows pivots;  // one of each cluster, in the dtype and dimension of the references
  const int64_t* offsets;  // [pivots.rows + 1], ascending from 0 to reference.rows: the begin of each in `order`
  const int64_t* order;  // [reference.rows], the references of each cluster
  const double* radii;  // [reference.rows], in that order; descending in each cluster; infinite: without a bound
  const void* center;  // acc [dim], a point near all pivots, for the slack
  double* slack;  // out: [query.rows], the share of a query in the rounding errors; infinite: without a bound
  int64_t* scored;  // out: [query.rows], how many references were scored. scored[0] is -1 if `order` holds a number
                    // that is no reference, a radius is negative or NaN, or a score is outside its bounds, as far as
                    // the search read them; then the result is undefined
};

// The hinge loss over all pairs (E12): the sums of max(0, margin - y s) over each query's pairs, with y = 1 for a pair
// with equal labels ("positive") and -1 otherwise ("negative"); and one bit per pair: 1 if the pair counts and
// y s < margin.
struct Hinge {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows]
  const int64_t* exclude_index;  // [query.rows]: a reference to exclude, -1 for none; or null
  double margin;
  int64_t num_hard_negatives;  // only so many negatives of a query count, those with the highest scores; -1: all
  void *positive, *negative;  // out: acc [query.rows]
  uint8_t* active;  // out: [query.rows, ceil(reference.rows / 8)], lowest bit first, unused bits 0
};

// The gradients (E2) of `Hinge` from its bits: the upstream gradient of an active pair is -grad_positive[n] or
// grad_negative[n], that of any other pair 0. A null output is not computed.
struct HingeBackward {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const int64_t *query_labels, *reference_labels;  // [query.rows], [reference.rows]
  const void *grad_positive, *grad_negative;  // acc [query.rows]
  const uint8_t* active;  // as `Hinge` wrote it
  void* grad_query;  // out: dtype [query.rows, dim]
  void* grad_reference;  // out: dtype [reference.rows, dim]
  void* grad_weight;  // out: acc [dim]
  void* grad_bias;  // out: acc [1]
};

// The log-sum-exp of scale times each query's scores over its candidates, its mean score under the
// softmax, and one bit for each pair: 1 where backward needs it (E15). Without any candidate -infinity and 0.
struct LogSumExp {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  const void* scale;  // acc [1]
  Filter filter;
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
  int64_t pairs;
  const int64_t* offsets;  // [query.rows + 1], ascending from 0 to `pairs`
  const int64_t* indices;  // [pairs]
  const void* listed_scores;  // acc [pairs]
  int64_t* counts;  // out: [pairs]
  uint8_t* nan_rows;  // out: [query.rows], 0 or 1: whether a score of the query is NaN
};

// The scores of listed pairs, bit-identical to those that `rank` compares.
struct ListedScores {
  Dtype dtype;
  int64_t dim;
  Rows query, reference;  // one batch entry
  const void* weight;  // acc [dim]
  const void* bias;  // acc [1], or null for 0
  int64_t pairs;
  const int64_t* offsets;  // [query.rows + 1], ascending from 0 to `pairs`
  const int64_t* indices;  // [pairs], each a reference row
  void* scores;  // out: acc [pairs]
};

// All entry points, as row(struct, function). On CUDA plain torch computes codes (backends/codes.py) and combines score
// and score_backward for the gradients of the log-sum-exp (backends/logsumexp_bands.py).
#define DISSIM_CUDA_ENTRY_POINTS(row)                                                                 \
  row(Score, score) row(ScoreBackward, score_backward) row(TopK, topk) row(Hinge, hinge)              \
      row(HingeBackward, hinge_backward) row(QuantizedTopK, quantized_topk) row(LogSumExp, logsumexp) \
          row(ListedScores, listed_scores) row(Rank, rank)
#define DISSIM_ENTRY_POINTS(row)                                                         \
  DISSIM_CUDA_ENTRY_POINTS(row)                                                          \
  row(Extent, extent) row(Quantize, quantize) row(LogSumExpBackward, logsumexp_backward) \
      row(ClusteredTopK, clustered_topk)

// The CPU's entry points, compiled for one instruction set.
struct Kernels {
  const char* isa;
#define DISSIM_POINTER(Problem, name) void (*name)(const Problem&, const Parallel&);
  DISSIM_ENTRY_POINTS(DISSIM_POINTER)
#undef DISSIM_POINTER
};

// The best instruction set that this machine can run, or the one that the environment variable DISSIM_ISA names. It is
// chosen once. Null if that name is unknown or this machine cannot run it.
const Kernels* kernels();
// All compiled instruction sets, best first, null-terminated; and whether this machine can run one.
const Kernels* const* compiled_kernels();
bool can_run(const Kernels&);

}  // namespace dissim
