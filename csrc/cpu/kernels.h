// The entry points of one instruction set. DISSIM_ISA names it; setup.py compiles the kernels once for each.
#pragma once

#include "../dissim.h"

namespace dissim::DISSIM_ISA {

void score(const Score&, const Parallel&);
void score_backward(const ScoreBackward&, const Parallel&);
void topk(const TopK&, const Parallel&);
void hinge(const Hinge&, const Parallel&);
void hinge_backward(const HingeBackward&, const Parallel&);
void extent(const Extent&, const Parallel&);
void quantise(const Quantise&, const Parallel&);
void certified(const Certified&, const Parallel&);

}  // namespace dissim::DISSIM_ISA
