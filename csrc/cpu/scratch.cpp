#include "scratch.h"

#include <cstdlib>

#include "large_pages.h"

namespace dissim {
namespace {

// One large page: more than a call takes whose time its mapping would show in.
constexpr int64_t kKept = kLargePage;

struct Kept {
  char* memory = nullptr;
  int64_t used = 0;
  ~Kept() { free(memory); }
};
thread_local Kept kept;

void* allocate(int64_t alignment, int64_t bytes) {
  void* memory = aligned_alloc(size_t(alignment), size_t(bytes));
  if (!memory) abort();  // as operator new under -fno-exceptions: nothing sensible is left to do
  ask_for_large_pages(memory, bytes);
  return memory;
}

}  // namespace

void* take_scratch(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > kKept - kept.used) return allocate(64, bytes);
  if (!kept.memory) kept.memory = static_cast<char*>(allocate(kLargePage, kKept));
  kept.used += bytes;
  return kept.memory + kept.used - bytes;
}

void give_scratch(void* memory) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory) - reinterpret_cast<uintptr_t>(kept.memory);
  if (kept.memory && at < kKept) {
    kept.used = int64_t(at);
  } else {
    free(memory);
  }
}

}  // namespace dissim
