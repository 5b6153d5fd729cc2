// The entry points of the CUDA kernels. Each problem of dissim.h has two functions: `<name>_workspace` returns the
// number of bytes of scratch that a call needs, and `launch_<name>` launches its kernels on a stream. All pointers are
// device pointers. Nothing is allocated or synchronized, so calls can be captured in a CUDA graph. A failed launch
// throws std::runtime_error with the kernel, the device and a remedy.
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
