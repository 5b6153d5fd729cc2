// The entry points of one instruction set. setup.py compiles the kernels once for each, with its name as DISSIM_ISA.
#pragma once

#include "../dissim.h"

namespace dissim::DISSIM_ISA {

#define DISSIM_KERNEL(Problem, name) void name(const Problem&, const Parallel&);
DISSIM_ENTRY_POINTS(DISSIM_KERNEL)
#undef DISSIM_KERNEL

}  // namespace dissim::DISSIM_ISA
