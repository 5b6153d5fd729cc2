// The functions of the CUDA runtime that csrc/cuda calls, with failures that a test can inject, and the count of steps.
// Compiled without instrumentation, like cuda_on_host.cpp.
#include <map>
#include <utility>

#include "cuda_on_host.h"

namespace cuda_on_host {
namespace {

constexpr int kDefaultSharedBytes = 48 << 10, kMaxSharedBytes = 163 << 10;  // of sm_80
cudaError_t last_error = cudaSuccess;
std::map<const void*, int> requested_shared_bytes;  // by kernel
int calls_before_failure = -1;  // calls that succeed before one fails; -1: none fails
cudaError_t failure;

cudaError_t injected_failure() {
  if (calls_before_failure < 0 || calls_before_failure--) return cudaSuccess;
  return failure;
}

cudaError_t launch_error(const void* kernel, const Coordinates& grid, int shared_bytes) {
  if (const cudaError_t error = injected_failure()) return error;
  if (grid.x == 0 || grid.y == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX) return cudaErrorInvalidConfiguration;
  const auto requested = requested_shared_bytes.find(kernel);
  const int max_shared_bytes = requested == requested_shared_bytes.end() ? kDefaultSharedBytes : requested->second;
  return shared_bytes > max_shared_bytes ? cudaErrorInvalidValue : cudaSuccess;
}

uint64_t step_count = 0;

}  // namespace

bool may_launch(const void* kernel, const Coordinates& grid, int shared_bytes) {
  last_error = launch_error(kernel, grid, shared_bytes);
  return last_error == cudaSuccess;
}

uint64_t steps() { return step_count; }
#ifdef DISSIM_STEPS
extern "C" void __sanitizer_cov_trace_pc() { ++step_count; }
#endif

}  // namespace cuda_on_host

using namespace cuda_on_host;

extern "C" {

// After `calls` more calls of the runtime that succeed, one fails with `error`. -1: none fails.
void cuda_on_host_fail(int calls, int error) {
  calls_before_failure = calls;
  failure = cudaError_t(error);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (const cudaError_t error = injected_failure()) return error;
  if (bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
  requested_shared_bytes[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "cudaErrorNoKernelImageForDevice" : "another error";
}
const char* cudaGetErrorString(cudaError_t) { return "an error that the test injected"; }

cudaError_t cudaGetDevice(int* device) {
  *device = 3;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  strcpy(properties->name, "a GPU on the host");
  properties->major = 7;
  properties->minor = 5;
  return cudaSuccess;
}

}  // extern "C"
