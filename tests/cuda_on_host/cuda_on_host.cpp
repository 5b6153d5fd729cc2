// The fibers behind cuda_on_host.h. This file is compiled without -fsanitize=thread, which would report the switching
// of fibers itself. With DISSIM_TSAN or DISSIM_ASAN it tells the sanitizer about every switch.
#include "cuda_on_host.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <random>
#include <vector>

#ifdef DISSIM_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#define TSAN(statement) statement
#else
#define TSAN(statement)
#endif
#ifdef DISSIM_ASAN
#include <sanitizer/common_interface_defs.h>
#define ASAN(statement) statement
#else
#define ASAN(statement)
#endif

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kWarp = 32;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Copy {
  void* to;
  const void* from;
  int bytes, padded;
};

// Where the scheduler or a stack continues: at `context` if it has not run, else at `jump`. The compiler's own jumps
// make no system call and no sanitizer intercepts them, as it does swapcontext and longjmp.
struct Continuation {
  ucontext_t context = {};
  void* jump[5] = {};
  bool has_run = false;
};

// The stack of one thread of a block, then of the same thread of the next block.
struct Stack {
  Continuation continuation;
  void *tsan = nullptr, *asan = nullptr;
  char memory[kStackBytes];
};

struct Fiber {
  Stack* stack;
  Coordinates thread;
  State state = State::ready;
  SourceLocation location = {"", 0};
  unsigned mask = 0;
  unsigned block_barriers = 0, warp_barriers = 0, exchanges = 0;  // numbers of calls so far
  // Groups of copies that have not been performed. The last group is still open.
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);
};

// The addresses by which barriers tell ThreadSanitizer what happens before what. Two are used in turn: with a single
// one, a barrier would also order accesses after the next barrier, which hides races.
struct TsanTokens {
  char token[2];
};

struct Warp {
  // Exchanges use the two rows in turn, so that a lane cannot overwrite a value that another lane still has to read.
  uint64_t values[2][kWarp] = {};
  TsanTokens tsan;
};

struct Block {
  Coordinates grid, block;
  void (*body)(void*);
  void* argument;
  std::vector<Fiber> fibers = {};
  std::vector<Warp> warps = {};
  void* shared = nullptr;
  TsanTokens tsan = {};
  char begin = 0, end = 0;
  Continuation scheduler = {};
  void *scheduler_tsan = nullptr, *scheduler_asan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
};

Block* current_block;
Fiber* current_fiber;

bool environment_is(const char* name, const char* value) {
  const char* set = getenv(name);
  return set && !strcmp(set, value);
}

// A jump must leave from another function than that to which it leads.
[[noreturn, gnu::noinline, gnu::no_sanitize_address]] void continue_at(Continuation& to) {
  if (to.has_run) __builtin_longjmp(to.jump, 1);
  setcontext(&to.context);
  abort();
}

[[gnu::noinline, gnu::no_sanitize_address]] void switch_to(Continuation& from, Continuation& to) {
  from.has_run = true;
  if (!__builtin_setjmp(from.jump)) continue_at(to);
}

int thread_index(const Fiber& fiber) { return int(fiber.thread.x); }
Warp& current_warp() { return current_block->warps[thread_index(*current_fiber) / kWarp]; }

[[noreturn]] void abort_kernel(const char* reason, const Fiber& a, const Fiber& b) {
  fprintf(stderr, "cuda_on_host: %s: thread %d at %s:%d, thread %d at %s:%d, block (%u, %u)\n", reason, thread_index(a),
          a.location.file, a.location.line, thread_index(b), b.location.file, b.location.line, current_block->block.x,
          current_block->block.y);
  abort();
}

void perform(const Copy& copy) {
  TSAN(if (copy.bytes) __tsan_read_range(const_cast<void*>(copy.from), copy.bytes));
  TSAN(__tsan_write_range(copy.to, copy.padded));
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.padded - copy.bytes);
}

void switch_to_scheduler() {
  Stack& stack = *current_fiber->stack;
  ASAN(__sanitizer_start_switch_fiber(&stack.asan, current_block->scheduler_stack, current_block->scheduler_size));
  TSAN(__tsan_switch_to_fiber(current_block->scheduler_tsan, __tsan_switch_to_fiber_no_sync));
  switch_to(stack.continuation, current_block->scheduler);
  ASAN(__sanitizer_finish_switch_fiber(stack.asan, &current_block->scheduler_stack, &current_block->scheduler_size));
}

void switch_to_fiber(Fiber& fiber) {
  current_fiber = &fiber;
  ASAN(__sanitizer_start_switch_fiber(&current_block->scheduler_asan, fiber.stack->memory, kStackBytes));
  TSAN(__tsan_switch_to_fiber(fiber.stack->tsan, __tsan_switch_to_fiber_no_sync));
  switch_to(current_block->scheduler, fiber.stack->continuation);
  ASAN(__sanitizer_finish_switch_fiber(current_block->scheduler_asan, nullptr, nullptr));
}

// What a stack executes: one fiber of every block.
void run_fibers() {
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &current_block->scheduler_stack, &current_block->scheduler_size));
  for (;;) {
    TSAN(__tsan_acquire(&current_block->begin));
    current_block->body(current_block->argument);
    TSAN(__tsan_release(&current_block->end));
    current_fiber->state = State::done;
    switch_to_scheduler();
  }
}

// The stack of this thread of every block.
Stack& stack_of(size_t thread) {
  static std::deque<Stack> stacks;  // they must not move
  while (stacks.size() <= thread) {
    Stack& stack = stacks.emplace_back();
    TSAN(stack.tsan = __tsan_create_fiber(0));
    ucontext_t& context = stack.continuation.context;
    getcontext(&context);
    context.uc_stack = {.ss_sp = stack.memory, .ss_flags = 0, .ss_size = kStackBytes};
    context.uc_link = nullptr;
    makecontext(&context, run_fibers, 0);
  }
  return stacks[thread];
}

void wait(State at, unsigned mask, SourceLocation location) {
  current_fiber->state = at;
  current_fiber->mask = mask;
  current_fiber->location = location;
  switch_to_scheduler();
}

// Releases the lanes of every warp barrier that all lanes of its mask have reached; returns whether there was one.
bool release_warps(Block& b) {
  bool released = false;
  for (Fiber& fiber : b.fibers) {
    if (fiber.state != State::at_warp_barrier) continue;
    const int first = thread_index(fiber) / kWarp * kWarp;
    bool all = true;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      const Fiber& other = b.fibers[first + lane];
      if (other.state == State::done || other.state == State::at_block_barrier)
        abort_kernel("a lane of the mask has returned or waits at a block barrier", fiber, other);
      if (other.state == State::ready)
        all = false;
      else if (other.location.line != fiber.location.line || other.mask != fiber.mask)
        abort_kernel("lanes of one mask wait at different barriers", fiber, other);
    }
    if (!all) continue;
    for (int lane = 0; lane < kWarp; ++lane)
      if (fiber.mask >> lane & 1) b.fibers[first + lane].state = State::ready;
    released = true;
  }
  return released;
}

// Releases the block's threads if all of them wait at the barrier; returns whether it did.
bool release_block(Block& b) {
  const Fiber *waiting = nullptr, *returned = nullptr;
  for (const Fiber& fiber : b.fibers) {
    if (fiber.state == State::done)
      returned = &fiber;
    else if (fiber.state != State::at_block_barrier)
      return false;
    else if (waiting && waiting->location.line != fiber.location.line)
      abort_kernel("threads wait at different barriers", *waiting, fiber);
    else
      waiting = &fiber;
  }
  if (returned && waiting) abort_kernel("a thread has returned before the barrier", *returned, *waiting);
  for (Fiber& fiber : b.fibers)
    if (fiber.state == State::at_block_barrier) fiber.state = State::ready;
  return waiting;
}

void run_block(Block& b) {
  const size_t count = b.fibers.size();
  TSAN(b.scheduler_tsan = __tsan_get_current_fiber());
  TSAN(__tsan_release(&b.begin));
  const bool reverse = environment_is("DISSIM_HOST_ORDER", "reverse"),
             shuffled = environment_is("DISSIM_HOST_ORDER", "shuffled");
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = reverse ? count - 1 - i : i;
  std::mt19937 random(b.block.x + 7919 * b.block.y);
  for (size_t left = count; left;) {
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (size_t i : order) {
      Fiber& fiber = b.fibers[i];
      if (fiber.state != State::ready) continue;
      moved = true;
      switch_to_fiber(fiber);
      left -= fiber.state == State::done;
    }
    const bool warps = release_warps(b), block = left && release_block(b);
    if (left && !moved && !warps && !block)
      abort_kernel("deadlock: no thread can continue", b.fibers[0], b.fibers[count - 1]);
  }
  TSAN(__tsan_acquire(&b.end));
}

}  // namespace

const Coordinates& thread() { return current_fiber->thread; }
const Coordinates& block() { return current_block->block; }
const Coordinates& grid() { return current_block->grid; }
void* dynamic_shared() { return current_block->shared; }

void sync_block(SourceLocation location) {
  char* const token = &current_block->tsan.token[current_fiber->block_barriers++ & 1];
  (void)token;
  TSAN(__tsan_release(token));
  wait(State::at_block_barrier, 0, location);
  TSAN(__tsan_acquire(token));
}

void sync_warp(unsigned mask, SourceLocation location) {
  char* const token = &current_warp().tsan.token[current_fiber->warp_barriers++ & 1];
  (void)token;
  TSAN(__tsan_release(token));
  wait(State::at_warp_barrier, mask, location);
  TSAN(__tsan_acquire(token));
}

uint64_t exchange(unsigned mask, uint64_t value, int source, SourceLocation location) {
  if (!(mask >> lane() & 1)) abort_kernel("a lane is not in its own mask", *current_fiber, *current_fiber);
  Warp& warp = current_warp();
  uint64_t* const values = warp.values[current_fiber->exchanges++ & 1];
  values[lane()] = value;
  wait(State::at_warp_barrier, mask, location);
  return mask >> (source & 31) & 1 ? values[source & 31] : ~uint64_t(0);
}

unsigned sum(unsigned mask, unsigned value, SourceLocation location) {
  const uint64_t* const values = current_warp().values[current_fiber->exchanges & 1];
  exchange(mask, value, lane(), location);
  unsigned total = 0;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) total += unsigned(values[i]);
  return total;
}

unsigned vote(unsigned mask, bool predicate, SourceLocation location) {
  const uint64_t* const values = current_warp().values[current_fiber->exchanges & 1];
  exchange(mask, predicate, lane(), location);
  unsigned bits = 0;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) bits |= unsigned(values[i] != 0) << i;
  return bits;
}

void cp_async(void* to, const void* from, int bytes, int padded) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
    abort_kernel("a copy is not aligned to 16 bytes", *current_fiber, *current_fiber);
  const Copy copy = {to, from, bytes, padded};
  static const bool is_early = environment_is("DISSIM_HOST_COPIES", "early");
  if (is_early)
    perform(copy);
  else
    current_fiber->groups.back().push_back(copy);
}

void commit_group() { current_fiber->groups.emplace_back(); }

void wait_group(int pending) {
  auto& groups = current_fiber->groups;
  while (int(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

void run(const void* kernel, Coordinates grid, unsigned threads, int shared_bytes, void (*body)(void*),
         void* argument) {
  if (!may_launch(kernel, grid, shared_bytes)) return;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      Block b{grid, {x, y, 0}, body, argument};
      for (unsigned i = 0; i < threads; ++i) b.fibers.push_back({&stack_of(i), {i, 0, 0}});
      b.warps.resize((threads + kWarp - 1) / kWarp);
      if (shared_bytes && posix_memalign(&b.shared, 128, size_t(shared_bytes))) abort();
      if (shared_bytes) memset(b.shared, 0xff, size_t(shared_bytes));  // NaN in every dtype
      current_block = &b;
      run_block(b);
      free(b.shared);
      current_block = nullptr;
    }
}

}  // namespace cuda_on_host
