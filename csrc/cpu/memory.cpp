// The memory of a call, compiled once for all instruction sets. A thread that calls keeps a little for its next call:
// fresh memory costs a small call more to map than to use, and whether freed memory comes back mapped is the
// allocator's mood.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "large_pages.h"
#include "scratch.h"

namespace dissim {
namespace {

struct Kept {
  static constexpr int64_t size = kLargePage;  // more than a call takes whose time its mapping would show in
  char* memory = nullptr;
  int64_t used = 0;
  ~Kept() { free(memory); }

  bool holds(const void* at) const {
    return memory && reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(memory) < uintptr_t(size);
  }
};
thread_local Kept kept;

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes) {
    snprintf(text_, sizeof text_,
             "dissim: expected %.1f MiB of memory beside the result, the system has not got that much. Use fewer rows "
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
  ask_for_large_pages(memory, bytes);
  return memory;
}

}  // namespace

void* take_memory(int64_t bytes) {
  if (bytes > Kept::size - kept.used) return allocate(64, bytes);
  if (!kept.memory) kept.memory = static_cast<char*>(allocate(kLargePage, Kept::size));
  char* const memory = kept.memory + kept.used;
  kept.used += bytes;
  return memory;
}

void give_memory(void* memory) {
  if (kept.holds(memory)) {
    kept.used = static_cast<char*>(memory) - kept.memory;
  } else {
    free(memory);
  }
}

}  // namespace dissim
