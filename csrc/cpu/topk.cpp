// topk: the k best references of each query.
#include "kernels.h"
#include "topk_scan.h"

namespace dissim::DISSIM_ISA {
void topk(const TopK& problem, const Parallel& parallel) { dispatch<TopKScan>(problem, parallel); }
}  // namespace dissim::DISSIM_ISA
