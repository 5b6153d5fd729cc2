// CUDA kernels, executed on the CPU: included by csrc/cuda/launch.h in place of the CUDA runtime, so that the very
// sources of the kernels compile with g++ and can be tested, and watched by sanitizers, without a GPU.
//
// A block runs at a time, its threads as fibers that switch only where they wait for one another. What the GPU would do
// in any of many ways is done in the way that shows a mistake:
//   shared memory    has its exact size and begins as NaN;
//   asynchronous     land as late as they may, when they are waited for (finds a missing wait), or, with
//   copies           DISSIM_HOST_COPIES=early, at once (finds a buffer that is filled while it is still read);
//   order            of threads between barriers is ascending, or as DISSIM_HOST_ORDER=reverse|shuffled says;
//   barriers         end the program, with file and line, where threads wait at different ones or some have left;
//   memory           is ordered by barriers alone, shuffles order none: ThreadSanitizer is told so, and finds a missing
//                    barrier whatever the order;
//   launches         fail where a GPU's would, for a grid or shared memory beyond its limits or not asked for, and
//   where
//                    the test asks for it (cuda_on_host_fail). The runtime's functions are those that launch.h calls.
//   steps            are counted where kernels are compiled with -fsanitize-coverage=trace-pc: basic blocks, of all
//   threads.
// What this cannot see: races between blocks, and the hardware itself.
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
struct Place {
  const char* file;
  int line;
};

const Coordinates& thread();  // of the fiber that runs
const Coordinates& block();
const Coordinates& grid();
void* dynamic_shared();

void sync_block(Place place);
void sync_warp(unsigned mask, Place place);
// What the lane `source` of this warp brought to the same exchange; every lane of the mask must take part.
uint64_t exchange(unsigned mask, uint64_t value, int source, Place place);
// The sum of what the mask's lanes bring.
unsigned sum(unsigned mask, unsigned value, Place place);
// The bits of the mask's lanes whose predicate is not 0.
unsigned vote(unsigned mask, bool predicate, Place place);

void copy_async(void* to, const void* from, int bytes, int padded);
void end_group();
void wait_for_groups(int still_going);

// Whether a kernel can be launched like this; if not, cudaGetLastError tells why.
bool may_launch(const void* kernel, const Coordinates& grid, int shared_bytes);
// Runs body(argument) for every thread of every block; or does nothing, and cudaGetLastError tells why.
void run(const void* kernel, Coordinates grid, unsigned threads, int shared_bytes, void (*body)(void*), void* argument);

uint64_t steps();  // that have been counted so far

inline int lane() { return int(thread().x % 32); }

template <class T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, place);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_host

#define CUDA_ON_HOST_HERE (::cuda_on_host::Place{__FILE__, __LINE__})
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
T as(auto bits) {
  static_assert(sizeof(T) == sizeof bits);
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned __float_as_uint(float x) { return as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return as<float>(x); }
inline int __float_as_int(float x) { return as<int>(x); }
inline float __int_as_float(int x) { return as<float>(x); }
inline long long __double_as_longlong(double x) { return as<long long>(x); }
inline double __longlong_as_double(long long x) { return as<double>(x); }
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
inline int __viaddmin_s32_relu(int a, int b, int most) { return max(0, min(int(unsigned(a) + unsigned(b)), most)); }
inline int atomicOr(int* place, int bits) { return __atomic_fetch_or(place, bits, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* place, unsigned long long by) {
  return __atomic_fetch_add(place, by, __ATOMIC_RELAXED);
}
template <class T>
T __ldg(const T* from) {
  return *from;
}

namespace dissim {

using ::cuda_on_host::end_group;
inline void copy_async(void* to, const void* from, int bytes) { ::cuda_on_host::copy_async(to, from, bytes, 16); }
inline void copy_async_if(bool real, void* to, const void* from) { copy_async(to, from, real ? 16 : 0); }
template <int still_going>
void wait_for_groups() {
  ::cuda_on_host::wait_for_groups(still_going);
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), const auto& grid, int shared_bytes, cudaStream_t, Arguments... arguments) {
  auto body = [=] { kernel(arguments...); };
  ::cuda_on_host::run(
      reinterpret_cast<const void*>(kernel), {unsigned(grid.x), unsigned(grid.y), 1}, 256, shared_bytes,
      [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

}  // namespace dissim
