// Linux maps new memory at its first write, one page of 4 KiB per page fault. For a large output these faults cost as
// much as much of the computation. With transparent huge pages one fault maps 2 MiB.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dissim {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// Advises the kernel to use huge pages for `bytes` bytes that are about to be written. Nothing depends on its success.
inline void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / kHugePage * kHugePage;
  if (memory && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace
}  // namespace dissim
