// Scratch memory of a call. The calling thread allocates all of it before the first task begins, so a task cannot fail
// for lack of memory. Each task gets its part of it.
#pragma once

#include <cstdint>

namespace dissim {

// Allocates `bytes`, a multiple of 64, at an address that is a multiple of 64 (memory.cpp). Throws a std::bad_alloc
// whose text says how many bytes. A thread frees its allocations in the reverse order.
void* allocate_scratch(int64_t bytes);
void free_scratch(void* memory);

namespace {

// The bytes of `count` values: whole cache lines, with at least 64 bytes after the last value, so that a kernel may
// read or write a whole vector there.
template <class A>
constexpr int64_t scratch_bytes(int64_t count) {
  return (count * int64_t(sizeof(A)) + 127) / 64 * 64;
}

// An uninitialized array.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<A*>(allocate_scratch(scratch_bytes<A>(count)))) {}
  ~Scratch() { free_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return data_; }

 private:
  A* const data_;
};

// Divides a block of memory into arrays, one after another. Without memory it returns null pointers and only counts:
// constructing an object with such an arena tells how many bytes the object needs.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <class A>
  A* take(int64_t count) {
    char* const array = memory_ ? memory_ + used_ : nullptr;
    used_ += scratch_bytes<A>(count);
    return reinterpret_cast<A*>(array);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace dissim
