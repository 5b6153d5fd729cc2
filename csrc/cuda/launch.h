// How kernels are launched, and what launchers need of a stream; the host shim of the tests has its own `start`.
#pragma once

#include "../dissim.h"

#ifdef DISSIM_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_runtime.h>
#endif

namespace dissim {

using Stream = cudaStream_t;
struct Grid {
  int64_t x, y;
};

inline __host__ __device__ int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }
inline __host__ __device__ int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline __host__ __device__ int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Throws std::runtime_error unless `error` is cudaSuccess: the kernel's name, the device and what to do (launch.cu).
void check_launch(const char* kernel, cudaError_t error);

#ifndef DISSIM_CUDA_ON_HOST
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), Grid grid, int shared_bytes, Stream stream, Arguments... arguments) {
  kernel<<<dim3(unsigned(grid.x), unsigned(grid.y)), 256, shared_bytes, stream>>>(arguments...);
}
#endif

// Launches blocks of 256 threads; without any block it does nothing. The only place that calls the CUDA runtime: a
// static runtime has an error state of its own, which torch does not see, so it is read after every launch.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int shared_bytes, Stream stream,
            Arguments... arguments) {
  constexpr int without_asking = 48 << 10;  // bytes of shared memory
  if (grid.x == 0 || grid.y == 0) return;
  if (grid.x > INT32_MAX || grid.y > UINT16_MAX) check_launch(name, cudaErrorInvalidConfiguration);
  if (shared_bytes > without_asking)
    check_launch(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  start(kernel, grid, shared_bytes, stream, arguments...);
  check_launch(name, cudaGetLastError());
}

}  // namespace dissim
