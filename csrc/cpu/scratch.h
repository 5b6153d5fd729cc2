// Memory of one task. Each thread keeps a little for its next call of the same kernel: fresh memory costs a small call
// more to map than to use, and whether freed memory comes back mapped is the allocator's mood.
#pragma once

#include <cstdlib>

#include "large_pages.h"

namespace dissim {
namespace {

struct ThreadMemory {
  static constexpr int64_t size = kLargePage;  // more than a call takes whose time its mapping would show in
  char* memory = nullptr;
  int64_t used = 0;
  ~ThreadMemory() { free(memory); }
};
thread_local ThreadMemory kept;

inline void* allocate(int64_t alignment, int64_t bytes) {
  void* memory = aligned_alloc(size_t(alignment), size_t(bytes));
  if (!memory) abort();  // as operator new under -fno-exceptions: nothing sensible is left to do
  ask_for_large_pages(memory, bytes);
  return memory;
}

// Cache-line aligned. What a thread takes last it gives back first.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const int64_t bytes = (count * int64_t(sizeof(A)) + 127) / 64 * 64;  // a line behind the last may be used too
    if (bytes > ThreadMemory::size - kept.used) {
      data_ = static_cast<A*>(allocate(64, bytes));
      return;
    }
    if (!kept.memory) kept.memory = static_cast<char*>(allocate(kLargePage, ThreadMemory::size));
    data_ = reinterpret_cast<A*>(kept.memory + kept.used);
    kept.used += bytes;
  }
  ~Scratch() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(data_) - reinterpret_cast<uintptr_t>(kept.memory);
    if (kept.memory && at < ThreadMemory::size) {
      kept.used = int64_t(at);
    } else {
      free(data_);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return data_; }

 private:
  A* data_;
};

}  // namespace
}  // namespace dissim
