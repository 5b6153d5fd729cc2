// The CUDA kernels as one more instruction set, for native_check.cpp. Each runs with a workspace of exactly the size
// that it reports, filled with NaN.
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

DISSIM_CUDA_ENTRY_POINTS(DISSIM_RUN)

}  // namespace dissim::DISSIM_ISA
