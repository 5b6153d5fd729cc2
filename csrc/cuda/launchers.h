// The entry points of the CUDA kernels: for each problem of dissim.h, whose pointers are the device's, how many bytes
// of scratch it needs, and its launch on a stream. No allocation, no synchronisation: calls can be captured in a graph.
// A launch that fails throws std::runtime_error with the kernel, the device and what to do.
#pragma once

#include "../dissim.h"

struct CUstream_st;

namespace dissim {

using Stream = CUstream_st*;  // cudaStream_t, without CUDA's headers

#define DISSIM_LAUNCHER(Problem, name)      \
  int64_t name##_workspace(const Problem&); \
  void launch_##name(const Problem&, void* workspace, Stream stream);

DISSIM_CUDA_ENTRY_POINTS(DISSIM_LAUNCHER)

}  // namespace dissim
