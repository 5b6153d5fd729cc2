// Memory of one task. Each thread keeps a little for its next call: fresh memory costs a small call more to map than to
// use, and whether freed memory comes back mapped is the allocator's mood.
#pragma once

#include <cstdint>

namespace dissim {

// Cache-line aligned; what a thread took last it gives back first.
void* take_scratch(int64_t bytes);
void give_scratch(void* memory);

namespace {

template <class A>
class Scratch {
 public:
  // 64 bytes behind the last may be read and written.
  explicit Scratch(int64_t count) : data_(static_cast<A*>(take_scratch(count * int64_t(sizeof(A)) + 64))) {}
  ~Scratch() { give_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return data_; }

 private:
  A* data_;
};

}  // namespace
}  // namespace dissim
