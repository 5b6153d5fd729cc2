// The scratch memory of a call, compiled once for all instruction sets. Each calling thread keeps one block of 2 MiB
// and uses it as a stack: a small call would otherwise spend more time on the page faults of new memory than on its
// work, and whether freed memory stays mapped depends on the allocator.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "huge_pages.h"
#include "scratch.h"

namespace dissim {
namespace {

struct ThreadCache {
  // A call that needs more takes so long that page faults do not matter.
  static constexpr int64_t kSize = kHugePage;

  char* memory = nullptr;  // allocated by the thread's first call
  int64_t used = 0;

  ~ThreadCache() { free(memory); }

  bool contains(const void* address) const {
    return memory && reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory) < uintptr_t(kSize);
  }
};
thread_local ThreadCache cache;

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) {
    snprintf(text_, sizeof text_,
             "dissim: expected %.1f MiB of free memory in addition to the result, the system has less. Use fewer rows "
             "at a time.",
             double(bytes) / (1 << 20));
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[160];
};

void* allocate(int64_t alignment, int64_t bytes) {
  void* const memory = aligned_alloc(size_t(alignment), size_t(bytes));
  if (!memory) throw OutOfMemory(bytes);
  advise_huge_pages(memory, bytes);
  return memory;
}

}  // namespace

void* allocate_scratch(int64_t bytes) {
  if (bytes > ThreadCache::kSize - cache.used) return allocate(64, bytes);
  if (!cache.memory) cache.memory = static_cast<char*>(allocate(kHugePage, ThreadCache::kSize));
  char* const memory = cache.memory + cache.used;
  cache.used += bytes;
  return memory;
}

void free_scratch(void* memory) {
  if (cache.contains(memory)) {
    cache.used = static_cast<char*>(memory) - cache.memory;
  } else {
    free(memory);
  }
}

}  // namespace dissim
