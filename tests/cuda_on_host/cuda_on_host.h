// Executes CUDA kernels on the CPU. csrc/cuda/launch.h includes this file in place of the CUDA runtime, so g++
// compiles the unchanged kernel sources, and they can be tested without a GPU, also under sanitizers.
//
// Blocks run one after another. The threads of a block are fibers, which switch only at barriers, shuffles and votes.
// Where a GPU may behave in several ways, the emulation takes the one that reveals mistakes:
//
//   shared memory    has its exact size and is filled with NaN
//   cp.async         copies as late as allowed, when it is waited for (reveals a missing wait); or at once, with
//                    DISSIM_HOST_COPIES=early (reveals a buffer that is overwritten while it is still read)
//   thread order     between barriers: ascending, or as DISSIM_HOST_ORDER=reverse|shuffled says
//   barriers         abort with file and line if threads wait at different ones, or if some have returned
//   memory order     only barriers order memory accesses, shuffles do not. ThreadSanitizer is told so and finds a
//                    missing barrier in any thread order
//   launches         fail where a GPU's would: a grid that is too large, more shared memory than a block can have or
//                    than was requested; and where a test injects a failure (cuda_on_host_fail)
//   steps            the number of basic blocks that all threads have executed, if kernels are compiled with
//                    -fsanitize-coverage=trace-pc
//
// It cannot reveal races between blocks or anything about the hardware.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

namespace cuda_on_host {

struct Coordinates {
  unsigned x, y, z;
};
struct SourceLocation {
  const char* file;
  int line;
};

// threadIdx, blockIdx and gridDim of the fiber that is running.
const Coordinates& thread();
const Coordinates& block();
const Coordinates& grid();
void* dynamic_shared();

void sync_block(SourceLocation location);
void sync_warp(unsigned mask, SourceLocation location);
// The value that lane `source` of this warp passed to the same call. Every lane of the mask must call it.
uint64_t exchange(unsigned mask, uint64_t value, int source, SourceLocation location);
// The sum of the values of the lanes in the mask.
unsigned sum(unsigned mask, unsigned value, SourceLocation location);
// A bit for every lane in the mask: whether its predicate is true.
unsigned vote(unsigned mask, bool predicate, SourceLocation location);

void cp_async(void* to, const void* from, int bytes, int padded);
void commit_group();
void wait_group(int pending);

// Whether a GPU would accept this launch; if not, cudaGetLastError returns the reason.
bool may_launch(const void* kernel, const Coordinates& grid, int shared_bytes);
// Calls body(argument) for every thread of every block, or does nothing if may_launch is false.
void run(const void* kernel, Coordinates grid, unsigned threads, int shared_bytes, void (*body)(void*), void* argument);

uint64_t steps();  // executed so far

inline int lane() { return int(thread().x % 32); }

template <class T>
T shuffle(unsigned mask, T value, int source, SourceLocation location) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, location);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_host

#define CUDA_ON_HOST_HERE (::cuda_on_host::SourceLocation{__FILE__, __LINE__})
#define threadIdx (::cuda_on_host::thread())
#define blockIdx (::cuda_on_host::block())
#define gridDim (::cuda_on_host::grid())
#define __syncthreads() ::cuda_on_host::sync_block(CUDA_ON_HOST_HERE)
#define __syncwarp(...) ::cuda_on_host::sync_warp(0xffffffffu, CUDA_ON_HOST_HERE)
#define __shfl_sync(mask, value, source) ::cuda_on_host::shuffle(mask, value, source, CUDA_ON_HOST_HERE)
#define __shfl_xor_sync(mask, value, other) \
  ::cuda_on_host::shuffle(mask, value, ::cuda_on_host::lane() ^ (other), CUDA_ON_HOST_HERE)
#define __shfl_down_sync(mask, value, by)                                                                             \
  ::cuda_on_host::shuffle(                                                                                            \
      mask, value, ::cuda_on_host::lane() + int(by) < 32 ? ::cuda_on_host::lane() + int(by) : ::cuda_on_host::lane(), \
      CUDA_ON_HOST_HERE)
#define __reduce_add_sync(mask, value) ::cuda_on_host::sum(mask, value, CUDA_ON_HOST_HERE)
#define __ballot_sync(mask, predicate) ::cuda_on_host::vote(mask, predicate, CUDA_ON_HOST_HERE)
#define __any_sync(mask, predicate) (::cuda_on_host::vote(mask, predicate, CUDA_ON_HOST_HERE) != 0)
#define __all_sync(mask, predicate) (::cuda_on_host::vote(mask, !(predicate), CUDA_ON_HOST_HERE) == 0)

#define DISSIM_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::cuda_on_host::dynamic_shared())

template <class T>
T bit_cast_to(auto bits) {
  static_assert(sizeof(T) == sizeof bits);
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned __float_as_uint(float x) { return bit_cast_to<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bit_cast_to<float>(x); }
inline int __float_as_int(float x) { return bit_cast_to<int>(x); }
inline float __int_as_float(int x) { return bit_cast_to<float>(x); }
inline long long __double_as_longlong(double x) { return bit_cast_to<long long>(x); }
inline double __longlong_as_double(long long x) { return bit_cast_to<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline int __viaddmin_s32_relu(int a, int b, int limit) { return max(0, min(int(unsigned(a) + unsigned(b)), limit)); }
inline int atomicOr(int* address, int bits) { return __atomic_fetch_or(address, bits, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long by) {
  return __atomic_fetch_add(address, by, __ATOMIC_RELAXED);
}
template <class T>
T __ldg(const T* from) {
  return *from;
}

namespace dissim {

using ::cuda_on_host::commit_group;
inline void cp_async(void* to, const void* from, int bytes) { ::cuda_on_host::cp_async(to, from, bytes, 16); }
inline void cp_async_if(bool copy, void* to, const void* from) { cp_async(to, from, copy ? 16 : 0); }
template <int pending>
void wait_group() {
  ::cuda_on_host::wait_group(pending);
}

template <class... Parameters, class... Arguments>
void enqueue(void (*kernel)(Parameters...), const auto& grid, int shared_bytes, cudaStream_t, Arguments... arguments) {
  auto body = [=] { kernel(arguments...); };
  constexpr unsigned threads = 256;  // kThreads of launch.h, which includes this file
  ::cuda_on_host::run(
      reinterpret_cast<const void*>(kernel), {unsigned(grid.x), unsigned(grid.y), 1}, threads, shared_bytes,
      [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

}  // namespace dissim
