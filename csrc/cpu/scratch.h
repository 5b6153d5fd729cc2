// Memory of a call. The thread that calls takes it before any task begins, so that a task never asks the system for
// memory and cannot fail; tasks get their shares of it.
#pragma once

#include <cstdint>

namespace dissim {

// In memory.cpp: `bytes`, a multiple of 64, at such an address, of the thread that calls. Throws a std::bad_alloc that
// says how many. What is taken last is given back first.
void* take_memory(int64_t bytes);
void give_memory(void* memory);

namespace {

// Cache-line aligned, and a line behind the last may be used too.
template <class A>
constexpr int64_t bytes_of(int64_t count) {
  return (count * int64_t(sizeof(A)) + 127) / 64 * 64;
}

template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<A*>(take_memory(bytes_of<A>(count)))) {}
  ~Scratch() { give_memory(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return data_; }

 private:
  A* const data_;
};

// Memory that is handed out from its beginning on. Without any it only counts what is asked for.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <class A>
  A* take(int64_t count) {
    char* const at = memory_ ? memory_ + used_ : nullptr;
    used_ += bytes_of<A>(count);
    return reinterpret_cast<A*>(at);
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace dissim
