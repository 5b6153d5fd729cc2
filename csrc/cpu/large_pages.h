// Fresh memory is mapped page by page as it is first written, 4 KiB at a time: for a large output that costs as much
// as many of its elements. Linux maps 2 MiB at once where it is asked to.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dissim {
namespace {

constexpr int64_t kLargePage = 2 << 20;

// For memory of so many bytes that is about to be written; a hint, so nothing depends on its success.
inline void ask_for_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / kLargePage * kLargePage;
  if (memory && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace
}  // namespace dissim
