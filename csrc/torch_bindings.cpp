// The compiled kernels as private torch operators, over torch's stable ABI: what this file's headers produce loads on
// torch 2.10 and every later one. Shapes and dtypes were checked in Python (contract.py, backends/native.py); outputs
// come allocated. Here a tensor becomes a pointer, sizes and strides, and nothing else happens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>
#include <string>

#include "dissim.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

dissim::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return dissim::Dtype::float16;
    case ScalarType::BFloat16: return dissim::Dtype::bfloat16;
    case ScalarType::Float: return dissim::Dtype::float32;
    case ScalarType::Double: return dissim::Dtype::float64;
    default: STD_TORCH_CHECK(false, "dissim: contract.py lets four dtypes through, this is none of them");
  }
}

dissim::Rows rows_of(const Tensor& tensor) {  // [B, R, D]
  return {tensor.const_data_ptr(), tensor.size(1), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

const void* pointer(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
const int64_t* integers(const std::optional<Tensor>& tensor) { return static_cast<const int64_t*>(pointer(tensor)); }

void* output(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// at::parallel_for with a shared counter, so that a thread on a busy core takes fewer tasks.
dissim::Parallel parallel() {
  const int threads = int(torch::stable::get_num_threads());
  return {[](int64_t count, void (*each)(void*, int64_t), void* context) {
            std::atomic<int64_t> next{0};
            torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker)
                for (int64_t i; (i = next++) < count;) each(context, i);
            });
          },
          threads};
}

const dissim::Kernels& kernels() {
  const dissim::Kernels* chosen = dissim::kernels();
  STD_TORCH_CHECK(chosen,
                  "DISSIM_ISA: expected one of the instruction sets that were compiled and that this machine "
                  "runs (dissim_kernels.available_backends()), got ",
                  getenv("DISSIM_ISA"));
  return *chosen;
}

void score(Tensor query, Tensor reference, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  kernels().score({dtype_of(query), query.size(0), weight.size(0), query.size(2), rows_of(query), rows_of(reference),
                   weight.const_data_ptr(), pointer(bias), out.mutable_data_ptr()},
                  parallel());
}

void score_backward(Tensor grad, Tensor query, Tensor reference, Tensor weight, std::optional<Tensor> grad_query,
                    std::optional<Tensor> grad_reference, std::optional<Tensor> grad_weight) {
  kernels().score_backward(
      {dtype_of(query), query.size(0), weight.size(0), query.size(2), rows_of(query), rows_of(reference),
       weight.const_data_ptr(), grad.const_data_ptr(), grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3),
       output(grad_query), output(grad_reference), output(grad_weight)},
      parallel());
}

void topk(Tensor query, Tensor reference, Tensor weight, std::optional<Tensor> bias, int64_t k, bool largest,
          std::optional<Tensor> exclude, std::optional<Tensor> query_labels, std::optional<Tensor> reference_labels,
          Tensor scores, Tensor indices) {
  kernels().topk(
      {dtype_of(query), query.size(2), k, largest, rows_of(query), rows_of(reference), weight.const_data_ptr(),
       pointer(bias), integers(exclude), integers(query_labels), integers(reference_labels), scores.mutable_data_ptr(),
       static_cast<int64_t*>(indices.mutable_data_ptr())},
      parallel());
}

void hinge(Tensor query, Tensor reference, Tensor weight, std::optional<Tensor> bias, Tensor query_labels,
           Tensor reference_labels, std::optional<Tensor> exclude, double margin, int64_t hard_negatives,
           Tensor positive, Tensor negative, Tensor active) {
  kernels().hinge(
      {dtype_of(query), query.size(2), rows_of(query), rows_of(reference), weight.const_data_ptr(), pointer(bias),
       integers(query_labels), integers(reference_labels), integers(exclude), margin, hard_negatives,
       positive.mutable_data_ptr(), negative.mutable_data_ptr(), static_cast<uint8_t*>(active.mutable_data_ptr())},
      parallel());
}

void hinge_backward(Tensor grad_positive, Tensor grad_negative, Tensor active, Tensor query, Tensor reference,
                    Tensor weight, Tensor query_labels, Tensor reference_labels, std::optional<Tensor> grad_query,
                    std::optional<Tensor> grad_reference, std::optional<Tensor> grad_weight,
                    std::optional<Tensor> grad_bias) {
  kernels().hinge_backward({dtype_of(query), query.size(2), rows_of(query), rows_of(reference), weight.const_data_ptr(),
                            integers(query_labels), integers(reference_labels), grad_positive.const_data_ptr(),
                            grad_negative.const_data_ptr(), static_cast<const uint8_t*>(active.const_data_ptr()),
                            output(grad_query), output(grad_reference), output(grad_weight), output(grad_bias)},
                           parallel());
}

void extent(Tensor rows, Tensor low, Tensor high) {
  kernels().extent({dtype_of(rows), rows.size(2), rows_of(rows), low.mutable_data_ptr(), high.mutable_data_ptr()},
                   parallel());
}

void quantise(Tensor rows, Tensor columns, Tensor low, Tensor inverse, Tensor top, int64_t positive, double step,
              double extra, Tensor codes, Tensor errors, std::optional<Tensor> bases) {
  kernels().quantise(
      {dtype_of(rows), rows.size(2), columns.size(0) / dissim::kCodeGroup, rows_of(rows), integers(columns),
       low.const_data_ptr(), inverse.const_data_ptr(), top.const_data_ptr(), positive, step, extra,
       static_cast<uint8_t*>(codes.mutable_data_ptr()), static_cast<int32_t*>(errors.mutable_data_ptr()),
       bases ? static_cast<double*>(bases->mutable_data_ptr()) : nullptr},
      parallel());
}

void certified(Tensor query, Tensor reference, Tensor weight, std::optional<Tensor> bias, int64_t k, bool largest,
               std::optional<Tensor> exclude, std::optional<Tensor> query_labels,
               std::optional<Tensor> reference_labels, int64_t positive, double step, Tensor query_codes,
               Tensor query_errors, Tensor query_bases, Tensor reference_codes, Tensor reference_errors, Tensor scores,
               Tensor indices, Tensor rescored) {
  kernels().certified(
      {{dtype_of(query), query.size(2), k, largest, rows_of(query), rows_of(reference), weight.const_data_ptr(),
        pointer(bias), integers(exclude), integers(query_labels), integers(reference_labels), scores.mutable_data_ptr(),
        static_cast<int64_t*>(indices.mutable_data_ptr())},
       query_codes.size(1),
       positive,
       static_cast<const uint8_t*>(query_codes.const_data_ptr()),
       static_cast<const uint8_t*>(reference_codes.const_data_ptr()),
       static_cast<const int32_t*>(query_errors.const_data_ptr()),
       static_cast<const int32_t*>(reference_errors.const_data_ptr()),
       static_cast<const double*>(query_bases.const_data_ptr()),
       step,
       static_cast<int64_t*>(rescored.mutable_data_ptr())},
      parallel());
}

// "avx2" or another name; empty where DISSIM_ISA names a set that cannot run.
std::string isa() { return dissim::kernels() ? dissim::kernels()->isa : ""; }

// Every compiled set, best first, those this machine cannot run in brackets: "[avx512] avx2 plain".
std::string isas() {
  std::string names;
  for (const dissim::Kernels* const* set = dissim::compiled_kernels(); *set; ++set) {
    const std::string name = (*set)->isa;
    names += (names.empty() ? "" : " ") + (dissim::can_run(**set) ? name : "[" + name + "]");
  }
  return names;
}

}  // namespace

STABLE_TORCH_LIBRARY(dissim_native, library) {
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
      "Tensor? query_labels, Tensor? reference_labels, int positive, float step, Tensor query_codes, Tensor "
      "query_errors, "
      "Tensor query_bases, Tensor reference_codes, Tensor reference_errors, Tensor(a!) scores, Tensor(b!) indices, "
      "Tensor(c!) rescored) "
      "-> ()");
  library.def("isa() -> str");
  library.def("isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dissim_native, CPU, library) {
  library.impl("score", TORCH_BOX(&score));
  library.impl("score_backward", TORCH_BOX(&score_backward));
  library.impl("topk", TORCH_BOX(&topk));
  library.impl("hinge", TORCH_BOX(&hinge));
  library.impl("hinge_backward", TORCH_BOX(&hinge_backward));
  library.impl("extent", TORCH_BOX(&extent));
  library.impl("quantise", TORCH_BOX(&quantise));
  library.impl("certified", TORCH_BOX(&certified));
}

STABLE_TORCH_LIBRARY_IMPL(dissim_native, CompositeExplicitAutograd, library) {
  library.impl("isa", TORCH_BOX(&isa));
  library.impl("isas", TORCH_BOX(&isas));
}
