// CUDA's kernels under the names of an instruction set, for native_check.cpp: each runs with the scratch it asks for,
// of exactly that size and full of NaN.
#include <cstring>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cuda/launchers.h"

namespace dissim::DISSIM_ISA {

#define DISSIM_RUN(Problem, name)                                               \
  void name(const Problem& problem, const Parallel&) {                          \
    std::vector<char> workspace(size_t(name##_workspace(problem)), char(0xff)); \
    launch_##name(problem, workspace.data(), nullptr);                          \
  }

DISSIM_CUDA_OPERATORS(DISSIM_RUN)

}  // namespace dissim::DISSIM_ISA
