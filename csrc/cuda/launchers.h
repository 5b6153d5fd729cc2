// The entry points of the CUDA kernels: for each problem of dissim.h, whose pointers are the device's, how many bytes
// of scratch it needs, and its launch on a stream. No allocation, no synchronisation: calls can be captured in a graph.
// A launch that fails throws std::runtime_error with the kernel, the device and what to do.
#pragma once

#include "../dissim.h"

struct CUstream_st;

namespace dissim {

using Stream = CUstream_st*;  // cudaStream_t, without CUDA's headers

// The kernels that there are; rows become codes in plain torch (backends/codes.py).
#define DISSIM_CUDA_OPERATORS(row)                                                       \
  row(Score, score) row(ScoreBackward, score_backward) row(TopK, topk) row(Hinge, hinge) \
      row(HingeBackward, hinge_backward) row(Certified, certified)

#define DISSIM_LAUNCHER(Problem, name)      \
  int64_t name##_workspace(const Problem&); \
  void launch_##name(const Problem&, void* workspace, Stream stream);

DISSIM_CUDA_OPERATORS(DISSIM_LAUNCHER)

}  // namespace dissim
