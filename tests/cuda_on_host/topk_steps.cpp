// Prints how many steps a top-k executes on the host and how many bytes of scratch it needs:
//     topk_steps QUERIES REFERENCES K [bytes]
// With a fourth argument nothing is executed, and the number of steps is 0.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/launchers.h"
#include "cuda_on_host.h"

int main(int count, char** arguments) {
  if (count < 4) return EXIT_FAILURE;
  const int64_t n = atoll(arguments[1]), m = atoll(arguments[2]), k = atoll(arguments[3]);
  dissim::TopK problem = {dissim::Dtype::float32, 1, k, true, {nullptr, n, n, 1, 1}, {nullptr, m, m, 1, 1}};
  const int64_t bytes = dissim::topk_workspace(problem);
  if (count == 4) {
    std::vector<float> query(n), reference(m), scores(n * k);
    std::vector<int64_t> indices(n * k);
    std::vector<char> workspace(bytes);
    uint32_t state = 1;
    for (float& x : reference) x = float((state = state * 1664525 + 1013904223) >> 8);
    const float weight = 1;
    problem.query.data = query.data(), problem.reference.data = reference.data(), problem.weight = &weight;
    problem.scores = scores.data(), problem.indices = indices.data();
    dissim::launch_topk(problem, workspace.data(), nullptr);
  }
  std::printf("%llu %lld\n", (unsigned long long)cuda_on_host::steps(), (long long)bytes);
}
