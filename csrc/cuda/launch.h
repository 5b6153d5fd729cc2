// Launches a kernel on a stream and checks the result. tests/cuda_on_host/ replaces `enqueue` and runs kernels on the
// CPU.
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
constexpr int kThreads = 256;  // of every block
constexpr int kDefaultSharedBytes = 48 << 10;  // dynamic shared memory that a kernel gets without cudaFuncSetAttribute

inline __host__ __device__ int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// CUDA's min and max take two values of one type. These overloads take two different signed integer types. A plain
// overload for int64_t would also accept the unsigned keys of select.cuh and compare them as signed numbers.
using ::max;
using ::min;
template <class A, class B>
constexpr bool kMixedSignedIntegers = std::is_integral_v<A> && std::is_integral_v<B> && std::is_signed_v<A> &&
                                      std::is_signed_v<B> && !std::is_same_v<A, B>;
template <class A, class B, class = std::enable_if_t<kMixedSignedIntegers<A, B>>>
inline __host__ __device__ int64_t min(A a, B b) {
  return a < b ? a : b;
}
template <class A, class B, class = std::enable_if_t<kMixedSignedIntegers<A, B>>>
inline __host__ __device__ int64_t max(A a, B b) {
  return a > b ? a : b;
}

// Throws std::runtime_error unless `error` is cudaSuccess. The message names the kernel, the device and a remedy.
void check_launch(const char* kernel, cudaError_t error);

#ifndef DISSIM_CUDA_ON_HOST
template <class... Parameters, class... Arguments>
void enqueue(void (*kernel)(Parameters...), Grid grid, int shared_bytes, Stream stream, Arguments... arguments) {
  kernel<<<dim3(unsigned(grid.x), unsigned(grid.y)), kThreads, shared_bytes, stream>>>(arguments...);
}
#endif

// Launches a grid of blocks of kThreads threads; does nothing for an empty grid. Only this function and launch.cu call
// the CUDA runtime. The runtime is linked statically and has its own error state, which torch does not see. So the
// error is read after every launch.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int shared_bytes, Stream stream,
            Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  if (grid.x > INT32_MAX || grid.y > UINT16_MAX) check_launch(name, cudaErrorInvalidConfiguration);
  if (shared_bytes > kDefaultSharedBytes)
    check_launch(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  enqueue(kernel, grid, shared_bytes, stream, arguments...);
  check_launch(name, cudaGetLastError());
}

}  // namespace dissim
