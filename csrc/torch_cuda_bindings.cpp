// The CUDA kernels as the same operators, on the current stream of the tensors' device, without synchronization. With
// DISSIM_CUDA_ON_HOST, for tests, they are operators of another name that run the kernels on the CPU.
#include "torch_problems.h"

#include <torch/csrc/stable/accelerator.h>

#include "cuda/launchers.h"

// A weak symbol: only a CUDA build of torch has it, in libtorch_cuda.so, which libtorch.so loads.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace {

dissim::Stream current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream,
                  "dissim: expected torch's CUDA library (libtorch_cuda.so) to be loaded, found none. Install a CUDA "
                  "build of torch and build this package beside it, or use backend='triton'.");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<dissim::Stream>(stream);
}

template <auto workspace, auto launch>
struct OnCuda {
  static void run(const Tensor& tensor, const auto& problem) {
    const dissim::Stream stream = current_stream(tensor);
#ifndef DISSIM_CUDA_ON_HOST
    const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
#endif
    Tensor scratch = torch::stable::new_empty(tensor, {workspace(problem)}, ScalarType::Byte);
    launch(problem, scratch.mutable_data_ptr(), stream);
  }
};

}  // namespace

#ifdef DISSIM_CUDA_ON_HOST
STABLE_TORCH_LIBRARY(dissim_cuda_on_host, library) { define_operators(library); }
STABLE_TORCH_LIBRARY_IMPL(dissim_cuda_on_host, CPU, library) {
#else
STABLE_TORCH_LIBRARY_IMPL(dissim_native, CUDA, library) {
#endif
#define DISSIM_ON_CUDA(Problem, name) \
  library.impl(#name,                 \
               TORCH_BOX((&Operator<make_##name, OnCuda<dissim::name##_workspace, dissim::launch_##name>>::call)));
  DISSIM_CUDA_ENTRY_POINTS(DISSIM_ON_CUDA)
}
