// How kernels are launched, and what launchers need of a stream; the host shim of the tests has its own.
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
  unsigned x, y;
};

inline __host__ __device__ int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
inline __host__ __device__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline __host__ __device__ int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

#ifndef DISSIM_CUDA_ON_HOST
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, int shared_bytes, Stream stream, Arguments... arguments) {
  if (shared_bytes > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  kernel<<<dim3(grid.x, grid.y), 256, shared_bytes, stream>>>(arguments...);
}
#endif

// Blocks for each entry of a batch, which are blockIdx.y and the kernel's last argument together.
template <class Kernel, class... Arguments>
void launch_entries(Kernel kernel, int64_t blocks, int64_t entries, int shared_bytes, Stream stream,
                    Arguments... arguments) {
  constexpr int64_t most_at_once = 65535;
  for (int64_t first = 0; first < entries; first += most_at_once)
    launch(kernel, Grid{unsigned(blocks), unsigned(least(most_at_once, entries - first))}, shared_bytes, stream,
           arguments..., int(first));
}

}  // namespace dissim
