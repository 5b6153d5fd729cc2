// The CPU kernels as private torch operators.
#include "torch_problems.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace {

// Whether the system can start this number of threads. torch's parallel_for uses OpenMP, which ends the process if a
// thread does not start. OpenMP starts its threads in the first parallel loop of a calling thread and keeps them. So
// this is tested once per calling thread and number of threads: by starting that many at the same time.
bool can_start_threads(int64_t threads) {
  thread_local int64_t max_started = 1;
  if (threads <= max_started) return true;
  if (threads > dissim::kMaxThreads) return false;
  std::vector<std::thread> others;
  std::mutex all_started;
  try {
    const std::lock_guard hold(all_started);  // every thread waits for it
    others.reserve(size_t(threads));
    while (int64_t(others.size()) + 1 < threads) others.emplace_back([&] { const std::lock_guard wait(all_started); });
    max_started = threads;
  } catch (const std::exception&) {
  }
  for (std::thread& other : others) other.join();
  return threads <= max_started;
}

// at::parallel_for with a shared counter: a thread on a busy core takes fewer tasks. If the threads cannot be started,
// the calling thread does all the work.
dissim::Parallel parallel() {
  return {[](int threads, int64_t count, void (*each)(void*, int, int64_t), void* context) {
            std::atomic<int64_t> next{0};
            const auto work = [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker)
                for (int64_t i; (i = next++) < count;) each(context, int(worker), i);
            };
            const int64_t workers = std::min<int64_t>(count, threads);
            if (can_start_threads(torch::stable::get_num_threads()))
              torch::stable::parallel_for(0, workers, 1, work);
            else
              work(0, 1);
          },
          int(std::min<int64_t>(torch::stable::get_num_threads(), dissim::kMaxThreads))};
}

const dissim::Kernels& kernels() {
  const dissim::Kernels* chosen = dissim::kernels();
  const char* name = getenv("DISSIM_ISA");  // null if it was removed since the choice
  STD_TORCH_CHECK(chosen,
                  "DISSIM_ISA: expected one of the instruction sets that were compiled and that this machine "
                  "runs (`python -m dissim_kernels` lists them), got ",
                  name ? name : "another one");
  return *chosen;
}

template <auto kernel>
struct OnCpu {
  static void run(const Tensor&, const auto& problem) {
    try {
      (kernels().*kernel)(problem, parallel());
    } catch (const std::bad_alloc& error) {  // as a RuntimeError, which torch's own operators raise
      STD_TORCH_CHECK(false, error.what());
    }
  }
};

// The name of the chosen instruction set, such as "avx2"; empty if DISSIM_ISA names one that cannot run.
std::string isa() { return dissim::kernels() ? dissim::kernels()->isa : ""; }

// All compiled instruction sets, best first; in brackets those that this machine cannot run: "[avx512] avx2 plain".
std::string isas() {
  std::string names;
  for (const dissim::Kernels* const* set = dissim::compiled_kernels(); *set; ++set) {
    const std::string name = (*set)->isa;
    names += (names.empty() ? "" : " ") + (dissim::can_run(**set) ? name : "[" + name + "]");
  }
  return names;
}

// The architectures of the CUDA kernels in this library, for example "8.0;9.0;10.0+PTX"; empty without CUDA.
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
