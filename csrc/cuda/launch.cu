// The error message of a failed launch.
#include "launch.h"

#include <stdexcept>
#include <string>

namespace dissim {
namespace {

// "cuda:0 (NVIDIA A100, compute capability 8.0)", or less if the runtime cannot describe the device.
std::string current_device() {
  int device = -1;
  cudaDeviceProp properties;
  if (cudaGetDevice(&device) != cudaSuccess) return "the current CUDA device";
  const std::string name = "cuda:" + std::to_string(device);
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return name;
  return name + " (" + properties.name + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ")";
}

const char* remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return "The library has no kernels for this device: build it with the device's compute capability in "
             "TORCH_CUDA_ARCH_LIST, or use backend='triton' (from 8.0 on).";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
      return "The driver is older than the CUDA toolkit of the build: update the driver, build with an older toolkit, "
             "or use backend='triton'.";
    case cudaErrorInvalidConfiguration:
      return "The problem has more blocks than a grid can have: split the query into parts.";
    case cudaErrorMemoryAllocation: return "Free memory on the device, or split the query into parts.";
    default:
      return "It may be the error of an earlier call: run again with CUDA_LAUNCH_BLOCKING=1 to find the first one.";
  }
}

}  // namespace

void check_launch(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("dissim: the launch of ") + kernel + " failed on " + current_device() + ": " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + "). " + remedy(error));
}

}  // namespace dissim
