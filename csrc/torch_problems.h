// What the bindings of the CPU and of CUDA share: the schemas of the private operators, and functions that make the
// structs of dissim.h from their tensors. Every argument is checked (torch_arguments.h). The caller allocates outputs.
// Only torch's stable ABI is used.
#pragma once

#include "torch_arguments.h"

namespace {

// --- from the tensors of an operator to its struct; nullopt if no kernel has to run
// ------------------------------------

// Query [batch, N, D] and reference [batch, M, D], checked against each other.
struct Sides {
  dissim::Rows query, reference;
  int64_t batch, dim;
};

inline Sides check_sides(Arguments& given, const Tensor& query, const Tensor& reference, int64_t batch) {
  const dissim::Rows queries = given.rows("query", query, batch, kAny);
  const int64_t dim = query.size(2);
  const dissim::Rows references = given.rows("reference", reference, query.size(0), dim);
  if (dim > INT32_MAX)  // kernels store dimensions as int32
    raise_argument_error("query", "fewer than 2**31 dimensions", std::to_string(dim),
                         "Split the dimensions and add the scores of the parts.");
  int64_t bytes;  // of all scores: kernels compute such offsets
  if (__builtin_mul_overflow(queries.rows, references.rows, &bytes) || __builtin_mul_overflow(bytes, 64, &bytes))
    raise_argument_error("reference", "fewer pairs than 2**57", list(reference.sizes()),
                         "Split the rows into several calls.");
  return {queries, references, query.size(0), dim};
}

inline dissim::Score make_score(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor out) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, kAny);
  const void* weights = given.input("weight", weight, given.acc(), {kAny, dim});
  const int64_t heads = weight.size(0);
  return {given.dtype(),
          batch,
          heads,
          dim,
          queries,
          references,
          weights,
          given.input("bias", bias, given.acc(), {heads}),
          given.output("out", out, given.element(), {batch, heads, queries.rows, references.rows})};
}

// Gradients of a problem without pairs.
inline void set_to_zero(std::initializer_list<Optional> gradients) {
  for (Optional gradient : gradients)
    if (gradient) torch::stable::zero_(*gradient);
}

inline std::optional<dissim::ScoreBackward> make_score_backward(Tensor grad, Tensor query, Tensor reference,
                                                                Tensor weight, Optional grad_query,
                                                                Optional grad_reference, Optional grad_weight) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, kAny);
  const void* weights = given.input("weight", weight, given.acc(), {kAny, dim});
  const int64_t heads = weight.size(0);
  const void* grads = given.strided("grad", grad, {batch, heads, queries.rows, references.rows});
  const dissim::ScoreBackward problem{
      given.dtype(),
      batch,
      heads,
      dim,
      queries,
      references,
      weights,
      grads,
      grad.stride(0),
      grad.stride(1),
      grad.stride(2),
      grad.stride(3),
      given.output("grad_query", grad_query, given.element(), {batch, queries.rows, dim}),
      given.output("grad_reference", grad_reference, given.element(), {batch, references.rows, dim}),
      given.output("grad_weight", grad_weight, given.acc(), {heads, dim})};
  if (grad.numel() && dim) return problem;
  set_to_zero({grad_query, grad_reference, grad_weight});
  return {};
}

// Labels of both sides or of neither.
inline dissim::Filter check_filter(Arguments& given, const Optional& exclude_index, const Optional& query_labels,
                                   const Optional& reference_labels, bool among_same, int64_t queries,
                                   int64_t references) {
  if (query_labels.has_value() != reference_labels.has_value())
    raise_argument_error(query_labels ? "reference_labels" : "query_labels", "labels, since the other side has them",
                         "None", "Pass both or neither.");
  return {given.input<int64_t>("query_labels", query_labels, {queries}),
          given.input<int64_t>("reference_labels", reference_labels, {references}),
          given.input<int64_t>("exclude_index", exclude_index, {queries}), among_same};
}

inline dissim::TopK check_topk(Arguments& given, const Tensor& query, const Tensor& reference, const Tensor& weight,
                               const Optional& bias, int64_t k, bool largest, const Optional& exclude_index,
                               const Optional& query_labels, const Optional& reference_labels, bool among_same,
                               const Tensor& scores, const Tensor& indices) {
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  check_integer("k", k, 0, references.rows);
  return {given.dtype(),
          dim,
          k,
          largest,
          queries,
          references,
          given.input("weight", weight, given.acc(), {dim}),
          given.input("bias", bias, given.acc(), {1}),
          check_filter(given, exclude_index, query_labels, reference_labels, among_same, queries.rows, references.rows),
          given.output("scores", scores, given.acc(), {queries.rows, k}),
          given.output<int64_t>("indices", indices, {queries.rows, k})};
}

inline dissim::TopK make_topk(Tensor query, Tensor reference, Tensor weight, Optional bias, int64_t k, bool largest,
                              Optional exclude_index, Optional query_labels, Optional reference_labels, bool among_same,
                              Tensor scores, Tensor indices) {
  Arguments given(query);
  return check_topk(given, query, reference, weight, bias, k, largest, exclude_index, query_labels, reference_labels,
                    among_same, scores, indices);
}

inline dissim::Hinge make_hinge(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor query_labels,
                                Tensor reference_labels, Optional exclude_index, double margin,
                                int64_t num_hard_negatives, Tensor positive, Tensor negative, Tensor active) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  check_integer("num_hard_negatives", num_hard_negatives, -1, INT64_MAX);
  return {given.dtype(),
          dim,
          queries,
          references,
          given.input("weight", weight, given.acc(), {dim}),
          given.input("bias", bias, given.acc(), {1}),
          given.input<int64_t>("query_labels", query_labels, {queries.rows}),
          given.input<int64_t>("reference_labels", reference_labels, {references.rows}),
          given.input<int64_t>("exclude_index", exclude_index, {queries.rows}),
          margin,
          num_hard_negatives,
          given.output("positive", positive, given.acc(), {queries.rows}),
          given.output("negative", negative, given.acc(), {queries.rows}),
          given.output<uint8_t>("active", active, {queries.rows, ceil_div(references.rows, 8)})};
}

// The unused bits of a row must be 0. CUDA kernels mask them instead, so that the host need not wait for the device.
template <class Problem>
void check_unused_bits(const Problem& problem) {
  const int64_t used = problem.reference.rows % 8;  // of the last byte; 0 if all are used
  const int64_t row_bytes = ceil_div(problem.reference.rows, 8);
  for (int64_t n = 0; used && n < problem.query.rows; ++n)
    if (problem.active[(n + 1) * row_bytes - 1] >> used)
      raise_argument_error("active", "unused bits of 0", "a 1 after the last reference", "Pass what hinge returned.");
}

inline std::optional<dissim::HingeBackward> make_hinge_backward(Tensor grad_positive, Tensor grad_negative,
                                                                Tensor active, Tensor query, Tensor reference,
                                                                Tensor weight, Tensor query_labels,
                                                                Tensor reference_labels, Optional grad_query,
                                                                Optional grad_reference, Optional grad_weight,
                                                                Optional grad_bias) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  const dissim::HingeBackward problem{
      given.dtype(),
      dim,
      queries,
      references,
      given.input("weight", weight, given.acc(), {dim}),
      given.input<int64_t>("query_labels", query_labels, {queries.rows}),
      given.input<int64_t>("reference_labels", reference_labels, {references.rows}),
      given.input("grad_positive", grad_positive, given.acc(), {queries.rows}),
      given.input("grad_negative", grad_negative, given.acc(), {queries.rows}),
      given.input<uint8_t>("active", active, {queries.rows, ceil_div(references.rows, 8)}),
      given.output("grad_query", grad_query, given.element(), {queries.rows, dim}),
      given.output("grad_reference", grad_reference, given.element(), {references.rows, dim}),
      given.output("grad_weight", grad_weight, given.acc(), {dim}),
      given.output("grad_bias", grad_bias, given.acc(), {1})};
  if (given.on_cpu()) check_unused_bits(problem);
  if (active.numel()) return problem;
  set_to_zero({grad_query, grad_reference, grad_weight, grad_bias});
  return {};
}

inline dissim::LogSumExp make_logsumexp(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor scale,
                                        Optional exclude_index, Optional query_labels, Optional reference_labels,
                                        bool among_same, Tensor value, Tensor mean_score, Tensor active) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  return {given.dtype(),
          dim,
          queries,
          references,
          given.input("weight", weight, given.acc(), {dim}),
          given.input("bias", bias, given.acc(), {1}),
          given.input("scale", scale, given.acc(), {1}),
          check_filter(given, exclude_index, query_labels, reference_labels, among_same, queries.rows, references.rows),
          given.output("value", value, given.acc(), {queries.rows}),
          given.output("mean_score", mean_score, given.acc(), {queries.rows}),
          given.output<uint8_t>("active", active, {queries.rows, ceil_div(references.rows, 8)})};
}

inline std::optional<dissim::LogSumExpBackward> make_logsumexp_backward(Tensor grad, Tensor value, Tensor active,
                                                                        Tensor query, Tensor reference, Tensor weight,
                                                                        Optional bias, Tensor scale,
                                                                        Optional grad_query, Optional grad_reference,
                                                                        Optional grad_weight) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  const dissim::LogSumExpBackward problem{
      given.dtype(),
      dim,
      queries,
      references,
      given.input("weight", weight, given.acc(), {dim}),
      given.input("bias", bias, given.acc(), {1}),
      given.input("scale", scale, given.acc(), {1}),
      given.input("grad", grad, given.acc(), {queries.rows}),
      given.input("value", value, given.acc(), {queries.rows}),
      given.input<uint8_t>("active", active, {queries.rows, ceil_div(references.rows, 8)}),
      given.output("grad_query", grad_query, given.element(), {queries.rows, dim}),
      given.output("grad_reference", grad_reference, given.element(), {references.rows, dim}),
      given.output("grad_weight", grad_weight, given.acc(), {dim})};
  if (given.on_cpu()) check_unused_bits(problem);
  if (active.numel() && dim) return problem;
  set_to_zero({grad_query, grad_reference, grad_weight});
  return {};
}

// Lists of pairs, in compressed-row form. On CUDA no host reads the offsets, and kernels see to it themselves.
inline const int64_t* check_offsets(Arguments& given, const Tensor& offsets, int64_t rows, int64_t pairs) {
  const int64_t* all = given.input<int64_t>("offsets", offsets, {rows + 1});
  if (!given.on_cpu()) return all;
  bool ascend = all[0] == 0 && all[rows] == pairs;
  for (int64_t n = 0; n < rows; ++n) ascend &= all[n] <= all[n + 1];
  if (!ascend)
    raise_argument_error("offsets", "numbers that ascend from 0 to " + std::to_string(pairs) + ", the pairs", "others",
                         "Pass where the list of each query begins, and the end of the last one.");
  return all;
}

inline dissim::ListedScores make_listed_scores(Tensor query, Tensor reference, Tensor weight, Optional bias,
                                               Tensor offsets, Tensor indices, Tensor scores) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  const int64_t* listed = given.input<int64_t>("indices", indices, {kAny});
  const int64_t pairs = indices.size(0);
  for (int64_t i = 0; given.on_cpu() && i < pairs; ++i) check_integer("indices", listed[i], 0, references.rows - 1);
  return {given.dtype(),
          dim,
          queries,
          references,
          given.input("weight", weight, given.acc(), {dim}),
          given.input("bias", bias, given.acc(), {1}),
          pairs,
          check_offsets(given, offsets, queries.rows, pairs),
          listed,
          given.output("scores", scores, given.acc(), {pairs})};
}

inline dissim::Rank make_rank(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor offsets,
                              Tensor indices, Tensor listed_scores, Tensor counts, Tensor nan_rows) {
  Arguments given(query);
  const auto [queries, references, batch, dim] = check_sides(given, query, reference, 1);
  const int64_t* listed = given.input<int64_t>("indices", indices, {kAny});
  const int64_t pairs = indices.size(0);
  return {given.dtype(),
          dim,
          queries,
          references,
          given.input("weight", weight, given.acc(), {dim}),
          given.input("bias", bias, given.acc(), {1}),
          pairs,
          check_offsets(given, offsets, queries.rows, pairs),
          listed,
          given.input("listed_scores", listed_scores, given.acc(), {pairs}),
          given.output<int64_t>("counts", counts, {pairs}),
          given.output<uint8_t>("nan_rows", nan_rows, {queries.rows})};
}

inline dissim::Extent make_extent(Tensor rows, Tensor low, Tensor high) {
  Arguments given(rows, "rows");
  const dissim::Rows all = given.rows("rows", rows, 1, kAny);
  const int64_t dim = rows.size(2);
  return {given.dtype(), dim, all, given.output("low", low, given.acc(), {dim}),
          given.output("high", high, given.acc(), {dim})};
}

using dissim::kCodeGroup, dissim::kCodePanel;

inline dissim::Quantize make_quantize(Tensor rows, Tensor dim_order, Tensor offset, Tensor inv_scale, Tensor max_code,
                                      int64_t positive, double step, double extra, Tensor codes, Tensor error_bounds,
                                      Optional bases) {
  Arguments given(rows, "rows");
  const dissim::Rows all = given.rows("rows", rows, 1, kAny);
  const int64_t dim = rows.size(2);
  const int64_t* dims = given.input<int64_t>("dim_order", dim_order, {kAny});
  const int64_t width = dim_order.size(0), groups = width / kCodeGroup, panels = ceil_div(all.rows, kCodePanel);
  if (width % kCodeGroup)
    raise_argument_error("dim_order", "a length that is a multiple of 8", std::to_string(width), "Pad the last group.");
  for (int64_t c = 0; c < width; ++c) check_integer("dim_order", dims[c], 0, dim - 1);
  check_integer("positive", positive, 0, groups);
  return {given.dtype(),
          dim,
          groups,
          all,
          dims,
          given.input("offset", offset, given.acc(), {width}),
          given.input("inv_scale", inv_scale, given.acc(), {width}),
          given.input("max_code", max_code, given.acc(), {width}),
          positive,
          step,
          extra,
          given.output<uint8_t>("codes", codes, {panels, groups, kCodePanel, kCodeGroup}),
          given.output<int32_t>("error_bounds", error_bounds, {panels * kCodePanel}),
          given.output<double>("bases", bases, {all.rows})};
}

inline dissim::QuantizedTopK make_quantized_topk(Tensor query, Tensor reference, Tensor weight, Optional bias,
                                                 int64_t k, bool largest, Optional exclude_index, Optional query_labels,
                                                 Optional reference_labels, bool among_same, Tensor positive,
                                                 Tensor step, Tensor query_codes, Tensor query_errors,
                                                 Tensor query_bases, Tensor reference_codes, Tensor reference_errors,
                                                 Tensor scores, Tensor indices, Tensor rescored) {
  Arguments given(query);
  const dissim::TopK topk = check_topk(given, query, reference, weight, bias, k, largest, exclude_index, query_labels,
                                       reference_labels, among_same, scores, indices);
  check_integer("D", topk.dim, 0, (1 << 19) - 1);                      // sums of codes fit in int32
  check_integer("M", topk.reference.rows, 0, (int64_t(1) << 32) - 1);  // row numbers fit in uint32
  const int64_t panels = ceil_div(topk.query.rows, kCodePanel), others = ceil_div(topk.reference.rows, kCodePanel);
  const uint8_t* codes = given.input<uint8_t>("query_codes", query_codes, {panels, kAny, kCodePanel, kCodeGroup});
  const int64_t groups = query_codes.size(1);
  check_integer("groups of query_codes", groups, 0, ceil_div(topk.dim, kCodeGroup) + 1);
  const int64_t* positives = given.input<int64_t>("positive", positive, {});
  if (given.on_cpu()) check_integer("positive", *positives, 0, groups);  // CUDA kernels clamp it, as above
  return {topk,
          groups,
          positives,
          given.input<double>("step", step, {}),
          codes,
          given.input<uint8_t>("reference_codes", reference_codes, {others, groups, kCodePanel, kCodeGroup}),
          given.input<int32_t>("query_errors", query_errors, {panels * kCodePanel}),
          given.input<int32_t>("reference_errors", reference_errors, {others * kCodePanel}),
          given.input<double>("query_bases", query_bases, {topk.query.rows}),
          given.output<int64_t>("rescored", rescored, {topk.query.rows})};
}

inline dissim::ClusteredTopK make_clustered_topk(Tensor query, Tensor reference, Tensor weight, Optional bias,
                                                 int64_t k, bool largest, Optional exclude_index, Optional query_labels,
                                                 Optional reference_labels, bool among_same, Tensor pivots,
                                                 Tensor order, Tensor offsets, Tensor radii, Tensor center,
                                                 Tensor scores, Tensor indices, Tensor slack, Tensor scored) {
  Arguments given(query);
  const dissim::TopK topk = check_topk(given, query, reference, weight, bias, k, largest, exclude_index, query_labels,
                                       reference_labels, among_same, scores, indices);
  const dissim::Rows all_pivots = given.rows("pivots", pivots, 1, topk.dim);
  const int64_t rows = topk.reference.rows;
  return {topk,
          all_pivots,
          check_offsets(given, offsets, all_pivots.rows, rows),
          given.input<int64_t>("order", order, {rows}),
          given.input<double>("radii", radii, {rows}),
          given.input("center", center, given.acc(), {topk.dim}),
          given.output<double>("slack", slack, {topk.query.rows}),
          given.output<int64_t>("scored", scored, {topk.query.rows})};
}

// --- the operators --------------------------------------------------------------------------------------------------

inline void define_operators(torch::stable::detail::StableLibrary& library) {
  library.def("score(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  library.def(
      "score_backward(Tensor grad, Tensor query, Tensor reference, Tensor weight, Tensor(a!)? grad_query, "
      "Tensor(b!)? grad_reference, Tensor(c!)? grad_weight) -> ()");
  library.def(
      "topk(Tensor query, Tensor reference, Tensor weight, Tensor? bias, int k, bool largest, Tensor? exclude_index, "
      "Tensor? query_labels, Tensor? reference_labels, bool among_same, Tensor(a!) scores, Tensor(b!) indices) -> ()");
  library.def(
      "hinge(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor query_labels, "
      "Tensor reference_labels, Tensor? exclude_index, float margin, int num_hard_negatives, Tensor(a!) positive, "
      "Tensor(b!) negative, Tensor(c!) active) -> ()");
  library.def(
      "hinge_backward(Tensor grad_positive, Tensor grad_negative, Tensor active, Tensor query, Tensor reference, "
      "Tensor weight, Tensor query_labels, Tensor reference_labels, Tensor(a!)? grad_query, "
      "Tensor(b!)? grad_reference, Tensor(c!)? grad_weight, Tensor(d!)? grad_bias) -> ()");
  library.def(
      "logsumexp(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor scale, Tensor? exclude_index, "
      "Tensor? query_labels, Tensor? reference_labels, bool among_same, Tensor(a!) value, Tensor(b!) mean_score, "
      "Tensor(c!) active) -> ()");
  library.def(
      "logsumexp_backward(Tensor grad, Tensor value, Tensor active, Tensor query, Tensor reference, Tensor weight, "
      "Tensor? bias, Tensor scale, Tensor(a!)? grad_query, Tensor(b!)? grad_reference, Tensor(c!)? grad_weight) -> ()");
  library.def(
      "rank(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor offsets, Tensor indices, "
      "Tensor listed_scores, Tensor(a!) counts, Tensor(b!) nan_rows) -> ()");
  library.def(
      "listed_scores(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor offsets, Tensor indices, "
      "Tensor(a!) scores) -> ()");
  library.def("extent(Tensor rows, Tensor(a!) low, Tensor(b!) high) -> ()");
  library.def(
      "quantize(Tensor rows, Tensor dim_order, Tensor offset, Tensor inv_scale, Tensor max_code, int positive, float "
      "step, "
      "float extra, Tensor(a!) codes, Tensor(b!) error_bounds, Tensor(c!)? bases) -> ()");
  library.def(
      "quantized_topk(Tensor query, Tensor reference, Tensor weight, Tensor? bias, int k, bool largest, Tensor? "
      "exclude_index, "
      "Tensor? query_labels, Tensor? reference_labels, bool among_same, Tensor positive, Tensor step, Tensor "
      "query_codes, "
      "Tensor query_errors, Tensor query_bases, Tensor reference_codes, Tensor reference_errors, Tensor(a!) scores, "
      "Tensor(b!) indices, Tensor(c!) rescored) -> ()");
  library.def(
      "clustered_topk(Tensor query, Tensor reference, Tensor weight, Tensor? bias, int k, bool largest, Tensor? "
      "exclude_index, Tensor? query_labels, Tensor? reference_labels, bool among_same, Tensor pivots, Tensor order, "
      "Tensor offsets, Tensor radii, Tensor center, Tensor(a!) scores, Tensor(b!) indices, Tensor(c!) slack, "
      "Tensor(d!) scored) -> ()");
}

// The function of an operator: `make` checks the tensors and returns the struct of dissim.h, which `Run` runs on the
// device of the first tensor.
template <auto make, class Run>
struct Operator;
template <class Problem, class... Arguments, Problem (*make)(Tensor, Arguments...), class Run>
struct Operator<make, Run> {
  static void call(Tensor first, Arguments... others) {
    const auto problem = std::optional(make(first, others...));
    if (problem) Run::run(first, *problem);
  }
};

}  // namespace
