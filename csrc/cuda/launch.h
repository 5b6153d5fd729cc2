// How kernels are launched, and what launchers need of a stream; the host shim of the tests has its own `start`.
#pragma once

#include <type_traits>

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

// CUDA's min and max take two values of one type. These take sizes of two signed integer types. Functions of int64_t
// alone would hide CUDA's and compare the unsigned keys of select.cuh as signed numbers.
using ::max;
using ::min;
template <class A, class B>
constexpr bool kTwoSizes = std::is_integral_v<A> && std::is_integral_v<B> && std::is_signed_v<A> &&
                           std::is_signed_v<B> && !std::is_same_v<A, B>;
template <class A, class B, class = std::enable_if_t<kTwoSizes<A, B>>>
inline __host__ __device__ int64_t min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B, class = std::enable_if_t<kTwoSizes<A, B>>>
inline __host__ __device__ int64_t max(A a, B b) {
  return a > b ? a : b;
}

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
