// Chooses one of the compiled instruction sets (DISSIM_ISAS, best first) at run time, once per process.
#include <cstdlib>
#include <cstring>

#include "../dissim.h"

#define DISSIM_KERNEL(Problem, name) void name(const Problem&, const Parallel&);
#define DISSIM_NAME(Problem, name) , name
#define DISSIM_DECLARE(set)                                             \
  namespace dissim::set {                                               \
  DISSIM_ENTRY_POINTS(DISSIM_KERNEL)                                    \
  static const Kernels table = {#set DISSIM_ENTRY_POINTS(DISSIM_NAME)}; \
  }
#define DISSIM_ROW(set) &dissim::set::table,

DISSIM_ISAS(DISSIM_DECLARE)

namespace dissim {

const Kernels* const* compiled_kernels() {
  static const Kernels* const all[] = {DISSIM_ISAS(DISSIM_ROW) nullptr};
  return all;
}

bool can_run(const Kernels& set) {
#if defined(__x86_64__)
  if (!strcmp(set.isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!strcmp(set.isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return true;  // the baseline of the architecture
}

static const Kernels* choose() {
  const char* wanted = getenv("DISSIM_ISA");
  for (const Kernels* const* set = compiled_kernels(); *set; ++set)
    if ((!wanted || !*wanted || !strcmp(wanted, (*set)->isa)) && can_run(**set)) return *set;
  return nullptr;
}

const Kernels* kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}

}  // namespace dissim
