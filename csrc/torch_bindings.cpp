// The CPU's kernels as private torch operators.
#include "torch_problems.h"

#include <algorithm>
#include <atomic>
#include <string>

namespace {

// at::parallel_for with a shared counter, so that a thread on a busy core takes fewer tasks.
dissim::Parallel parallel() {
  const int threads = int(torch::stable::get_num_threads());
  return {[](int64_t count, void (*each)(void*, int64_t), void* context) {
            std::atomic<int64_t> next{0};
            const int64_t workers = std::min<int64_t>(count, torch::stable::get_num_threads());  // no more are woken
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker)
                for (int64_t i; (i = next++) < count;) each(context, i);
            });
          },
          threads};
}

const dissim::Kernels& kernels() {
  const dissim::Kernels* chosen = dissim::kernels();
  STD_TORCH_CHECK(chosen,
                  "DISSIM_ISA: expected one of the instruction sets that were compiled and that this machine "
                  "runs (dissim_kernels.available_backends()), got ",
                  getenv("DISSIM_ISA"));
  return *chosen;
}

template <auto kernel>
struct OnCpu {
  static void run(const Tensor&, const auto& problem) { (kernels().*kernel)(problem, parallel()); }
};

// "avx2" or another name; empty where DISSIM_ISA names a set that cannot run.
std::string isa() { return dissim::kernels() ? dissim::kernels()->isa : ""; }

// Every compiled set, best first, those this machine cannot run in brackets: "[avx512] avx2 plain".
std::string isas() {
  std::string names;
  for (const dissim::Kernels* const* set = dissim::compiled_kernels(); *set; ++set) {
    const std::string name = (*set)->isa;
    names += (names.empty() ? "" : " ") + (dissim::can_run(**set) ? name : "[" + name + "]");
  }
  return names;
}

// The architectures whose CUDA kernels are in this library, "8.0;9.0;10.0+PTX" for one; empty without any.
std::string cuda_archs() { return DISSIM_CUDA_ARCHS; }

}  // namespace

STABLE_TORCH_LIBRARY(dissim_native, library) {
  define_operators(library);
  library.def("isa() -> str");
  library.def("isas() -> str");
  library.def("cuda_archs() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dissim_native, CPU, library){
#define DISSIM_ON_CPU(Problem, name) \
  library.impl(#name, TORCH_BOX((&Operator<make_##name, OnCpu<&dissim::Kernels::name>>::call)));
    DISSIM_ENTRY_POINTS(DISSIM_ON_CPU)}

STABLE_TORCH_LIBRARY_IMPL(dissim_native, CompositeExplicitAutograd, library) {
  library.impl("isa", TORCH_BOX(&isa));
  library.impl("isas", TORCH_BOX(&isas));
  library.impl("cuda_archs", TORCH_BOX(&cuda_archs));
}
