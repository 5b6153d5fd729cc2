// Tensors as the problems of dissim.h, and the private operators' schemas: what the bindings of the CPU and of CUDA
// share, over torch's stable ABI. Shapes and dtypes were checked in Python (contract.py, backends/native.py); outputs
// come allocated. Here a tensor becomes a pointer, sizes and strides, and nothing else happens.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "dissim.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline dissim::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return dissim::Dtype::float16;
    case ScalarType::BFloat16: return dissim::Dtype::bfloat16;
    case ScalarType::Float: return dissim::Dtype::float32;
    case ScalarType::Double: return dissim::Dtype::float64;
    default: STD_TORCH_CHECK(false, "dissim: contract.py lets four dtypes through, this is none of them");
  }
}

inline dissim::Rows rows_of(const Tensor& tensor) {  // [B, R, D]
  return {tensor.const_data_ptr(), tensor.size(1), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline const void* pointer(const Optional& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline const int64_t* integers(const Optional& tensor) { return static_cast<const int64_t*>(pointer(tensor)); }
inline void* output(const Optional& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// --- an operator's tensors as its problem ---------------------------------------------------------------------------

inline dissim::Score make_score(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor out) {
  return {dtype_of(query),    query.size(0),   weight.size(0), query.size(2), rows_of(query),
          rows_of(reference), pointer(weight), pointer(bias),  output(out)};
}

inline dissim::ScoreBackward make_score_backward(Tensor grad, Tensor query, Tensor reference, Tensor weight,
                                                 Optional grad_query, Optional grad_reference, Optional grad_weight) {
  return {dtype_of(query),    query.size(0),   weight.size(0),     query.size(2),          rows_of(query),
          rows_of(reference), pointer(weight), pointer(grad),      grad.stride(0),         grad.stride(1),
          grad.stride(2),     grad.stride(3),  output(grad_query), output(grad_reference), output(grad_weight)};
}

inline dissim::TopK make_topk(Tensor query, Tensor reference, Tensor weight, Optional bias, int64_t k, bool largest,
                              Optional exclude, Optional query_labels, Optional reference_labels, Tensor scores,
                              Tensor indices) {
  return {dtype_of(query),
          query.size(2),
          k,
          largest,
          rows_of(query),
          rows_of(reference),
          pointer(weight),
          pointer(bias),
          integers(exclude),
          integers(query_labels),
          integers(reference_labels),
          output(scores),
          static_cast<int64_t*>(output(indices))};
}

inline dissim::Hinge make_hinge(Tensor query, Tensor reference, Tensor weight, Optional bias, Tensor query_labels,
                                Tensor reference_labels, Optional exclude, double margin, int64_t hard_negatives,
                                Tensor positive, Tensor negative, Tensor active) {
  return {dtype_of(query),        query.size(2),
          rows_of(query),         rows_of(reference),
          pointer(weight),        pointer(bias),
          integers(query_labels), integers(reference_labels),
          integers(exclude),      margin,
          hard_negatives,         output(positive),
          output(negative),       static_cast<uint8_t*>(output(active))};
}

inline dissim::HingeBackward make_hinge_backward(Tensor grad_positive, Tensor grad_negative, Tensor active,
                                                 Tensor query, Tensor reference, Tensor weight, Tensor query_labels,
                                                 Tensor reference_labels, Optional grad_query, Optional grad_reference,
                                                 Optional grad_weight, Optional grad_bias) {
  return {dtype_of(query),
          query.size(2),
          rows_of(query),
          rows_of(reference),
          pointer(weight),
          integers(query_labels),
          integers(reference_labels),
          pointer(grad_positive),
          pointer(grad_negative),
          static_cast<const uint8_t*>(pointer(active)),
          output(grad_query),
          output(grad_reference),
          output(grad_weight),
          output(grad_bias)};
}

inline dissim::Extent make_extent(Tensor rows, Tensor low, Tensor high) {
  return {dtype_of(rows), rows.size(2), rows_of(rows), output(low), output(high)};
}

inline dissim::Quantise make_quantise(Tensor rows, Tensor columns, Tensor low, Tensor inverse, Tensor top,
                                      int64_t positive, double step, double extra, Tensor codes, Tensor errors,
                                      Optional bases) {
  return {dtype_of(rows),
          rows.size(2),
          columns.size(0) / dissim::kCodeGroup,
          rows_of(rows),
          integers(columns),
          pointer(low),
          pointer(inverse),
          pointer(top),
          positive,
          step,
          extra,
          static_cast<uint8_t*>(output(codes)),
          static_cast<int32_t*>(output(errors)),
          static_cast<double*>(output(bases))};
}

inline dissim::Certified make_certified(Tensor query, Tensor reference, Tensor weight, Optional bias, int64_t k,
                                        bool largest, Optional exclude, Optional query_labels,
                                        Optional reference_labels, Tensor positive, Tensor step, Tensor query_codes,
                                        Tensor query_errors, Tensor query_bases, Tensor reference_codes,
                                        Tensor reference_errors, Tensor scores, Tensor indices, Tensor rescored) {
  return {
      make_topk(query, reference, weight, bias, k, largest, exclude, query_labels, reference_labels, scores, indices),
      query_codes.size(1),
      integers(positive),
      static_cast<const double*>(pointer(step)),
      static_cast<const uint8_t*>(pointer(query_codes)),
      static_cast<const uint8_t*>(pointer(reference_codes)),
      static_cast<const int32_t*>(pointer(query_errors)),
      static_cast<const int32_t*>(pointer(reference_errors)),
      static_cast<const double*>(pointer(query_bases)),
      static_cast<int64_t*>(output(rescored))};
}

// --- the operators --------------------------------------------------------------------------------------------------

// Every operator has one name: of its schema, of its maker above, of its kernel.
#define DISSIM_OPERATORS(row) \
  row(score) row(score_backward) row(topk) row(hinge) row(hinge_backward) row(extent) row(quantise) row(certified)

inline void define_operators(torch::stable::detail::StableLibrary& library) {
  library.def("score(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  library.def(
      "score_backward(Tensor grad, Tensor query, Tensor reference, Tensor weight, Tensor(a!)? grad_query, "
      "Tensor(b!)? grad_reference, Tensor(c!)? grad_weight) -> ()");
  library.def(
      "topk(Tensor query, Tensor reference, Tensor weight, Tensor? bias, int k, bool largest, Tensor? exclude, "
      "Tensor? query_labels, Tensor? reference_labels, Tensor(a!) scores, Tensor(b!) indices) -> ()");
  library.def(
      "hinge(Tensor query, Tensor reference, Tensor weight, Tensor? bias, Tensor query_labels, "
      "Tensor reference_labels, Tensor? exclude, float margin, int hard_negatives, Tensor(a!) positive, "
      "Tensor(b!) negative, Tensor(c!) active) -> ()");
  library.def(
      "hinge_backward(Tensor grad_positive, Tensor grad_negative, Tensor active, Tensor query, Tensor reference, "
      "Tensor weight, Tensor query_labels, Tensor reference_labels, Tensor(a!)? grad_query, "
      "Tensor(b!)? grad_reference, Tensor(c!)? grad_weight, Tensor(d!)? grad_bias) -> ()");
  library.def("extent(Tensor rows, Tensor(a!) low, Tensor(b!) high) -> ()");
  library.def(
      "quantise(Tensor rows, Tensor columns, Tensor low, Tensor inverse, Tensor top, int positive, float step, "
      "float extra, Tensor(a!) codes, Tensor(b!) errors, Tensor(c!)? bases) -> ()");
  library.def(
      "certified(Tensor query, Tensor reference, Tensor weight, Tensor? bias, int k, bool largest, Tensor? exclude, "
      "Tensor? query_labels, Tensor? reference_labels, Tensor positive, Tensor step, Tensor query_codes, "
      "Tensor query_errors, Tensor query_bases, Tensor reference_codes, Tensor reference_errors, Tensor(a!) scores, "
      "Tensor(b!) indices, Tensor(c!) rescored) -> ()");
}

// What an operator does: it makes the problem of its tensors and has it run, with one of them to tell the device.
template <auto make, class Run>
struct Operator;
template <class Problem, class... Arguments, Problem (*make)(Tensor, Arguments...), class Run>
struct Operator<make, Run> {
  static void call(Tensor first, Arguments... others) { Run::run(first, make(first, others...)); }
};

}  // namespace
