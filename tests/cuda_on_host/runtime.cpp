// The CUDA runtime behind cuda_on_host.h: the functions that csrc/cuda calls, with failures that a test asks for, and
// the count of steps. Compiled without instrumentation, as the fibers are.
#include <map>
#include <utility>

#include "cuda_on_host.h"

namespace cuda_on_host {
namespace {

constexpr int kSharedOfBlock = 48 << 10, kSharedOnRequest = 163 << 10;  // the latter of sm_80
cudaError_t last_error = cudaSuccess;
std::map<const void*, int> shared_asked_for;  // by kernel
int calls_before_failure = -1;  // of those that can fail; -1: none fails
cudaError_t failure;

cudaError_t asked_to_fail() {
  if (calls_before_failure < 0 || calls_before_failure--) return cudaSuccess;
  return failure;
}

cudaError_t launch_error(const void* kernel, const Coordinates& grid, int shared_bytes) {
  if (const cudaError_t error = asked_to_fail()) return error;
  if (grid.x == 0 || grid.y == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX) return cudaErrorInvalidConfiguration;
  const auto asked = shared_asked_for.find(kernel);
  const int allowed = asked == shared_asked_for.end() ? kSharedOfBlock : asked->second;
  return shared_bytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

uint64_t counted = 0;

}  // namespace

bool may_launch(const void* kernel, const Coordinates& grid, int shared_bytes) {
  last_error = launch_error(kernel, grid, shared_bytes);
  return last_error == cudaSuccess;
}

uint64_t steps() { return counted; }
#ifdef DISSIM_STEPS
extern "C" void __sanitizer_cov_trace_pc() { ++counted; }
#endif

}  // namespace cuda_on_host

using namespace cuda_on_host;

extern "C" {

// The call of the runtime after so many more fails with this error, once; -1: none does.
void cuda_on_host_fail(int calls, int error) {
  calls_before_failure = calls;
  failure = cudaError_t(error);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (const cudaError_t error = asked_to_fail()) return error;
  if (bytes > kSharedOnRequest) return cudaErrorInvalidValue;
  shared_asked_for[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "cudaErrorNoKernelImageForDevice" : "another error";
}
const char* cudaGetErrorString(cudaError_t) { return "an error that the test asked for"; }

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
