// The CPU kernels on NumPy arrays, without torch. dissim_kernels/numpy.py checks every argument and allocates the
// results. Rows may have any strides.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dissim.h"

namespace py = pybind11;

namespace {

dissim::Dtype dtype_of(const py::array& array) {
  switch (array.itemsize()) {
    case 2: return dissim::Dtype::float16;
    case 4: return dissim::Dtype::float32;
    default: return dissim::Dtype::float64;
  }
}

dissim::Rows rows_of(const py::array& array) {  // [R, D]
  const int64_t size = array.itemsize();
  return {array.data(), array.shape(0), 0, array.strides(0) / size, array.strides(1) / size};
}

const void* pointer(const std::optional<py::array>& array) { return array ? array->data() : nullptr; }
const int64_t* integers(const std::optional<py::array>& array) { return static_cast<const int64_t*>(pointer(array)); }

// Starts threads for one call; the calling thread is one of them. The counter is shared: a thread on a busy core takes
// fewer tasks. If the system does not start all threads, those that it has started do the work.
dissim::Parallel parallel(int threads) {
  return {[](int threads, int64_t count, void (*each)(void*, int, int64_t), void* context) {
            std::atomic<int64_t> next{0};
            const auto work = [&](int worker) {
              for (int64_t i; (i = next++) < count;) each(context, worker, i);
            };
            const int workers = int(std::min<int64_t>(threads, count));
            std::vector<std::thread> others;
            others.reserve(workers);
            try {
              for (int worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
            } catch (const std::exception&) {
            }
            work(0);
            for (std::thread& other : others) other.join();
          },
          std::min(threads, dissim::kMaxThreads)};
}

// The compiled instruction sets that this machine can run, best first.
std::string runnable_sets() {
  std::string names;
  for (const dissim::Kernels* const* set = dissim::compiled_kernels(); *set; ++set)
    if (dissim::can_run(**set)) names += (names.empty() ? "" : ", ") + std::string((*set)->isa);
  return names;
}

const dissim::Kernels& kernels() {
  const dissim::Kernels* chosen = dissim::kernels();
  if (chosen) return *chosen;
  const char* name = getenv("DISSIM_ISA");  // null if it was removed since the choice
  throw std::runtime_error("DISSIM_ISA: expected an instruction set that this machine runs (" + runnable_sets() +
                           "), got " + (name ? name : "another one") + ". Set one of these before Python starts.");
}

void score(const py::array& query, const py::array& reference, const py::array& weight, const py::array& bias,
           py::array& scores, int threads) {
  const dissim::Score problem{
      dtype_of(query),      1, 1, query.shape(1), rows_of(query), rows_of(reference), weight.data(), bias.data(),
      scores.mutable_data()};
  const dissim::Kernels& set = kernels();
  py::gil_scoped_release release;
  set.score(problem, parallel(threads));
}

void topk(const py::array& query, const py::array& reference, const py::array& weight, const py::array& bias, int64_t k,
          bool largest, const std::optional<py::array>& exclude_index, py::array& scores, py::array& indices,
          int threads) {
  const dissim::TopK problem{dtype_of(query),
                             query.shape(1),
                             k,
                             largest,
                             rows_of(query),
                             rows_of(reference),
                             weight.data(),
                             bias.data(),
                             {nullptr, nullptr, integers(exclude_index), false},
                             scores.mutable_data(),
                             static_cast<int64_t*>(indices.mutable_data())};
  const dissim::Kernels& set = kernels();
  py::gil_scoped_release release;
  set.topk(problem, parallel(threads));
}

py::dict build_info() {
  py::dict sets;
  for (const dissim::Kernels* const* set = dissim::compiled_kernels(); *set; ++set)
    sets[(*set)->isa] = dissim::can_run(**set);
  py::dict facts;
  facts["version"] = DISSIM_VERSION;
#if defined(__clang__)
  facts["compiler"] = __VERSION__;
#else
  facts["compiler"] = "GCC " __VERSION__;
#endif
  facts["flags"] = DISSIM_FLAGS;
  facts["isa"] = kernels().isa;
  facts["isas"] = sets;
  facts["kernels"] = py::str(DISSIM_KERNELS).attr("split")();
  return facts;
}

}  // namespace

PYBIND11_MODULE(_numpy, module) {
  module.doc() = "The compiled functions of dissim_kernels.numpy, which checks their arguments.";
  module.def("score", &score);
  module.def("topk", &topk);
  module.def("build_info", &build_info);
}
