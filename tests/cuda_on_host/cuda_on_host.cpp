// The fibers behind cuda_on_host.h. Compiled without -fsanitize=thread, which would watch the switching itself; with
// DISSIM_TSAN or DISSIM_ASAN the sanitizer is told of it instead.
#include "cuda_on_host.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <memory>
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

constexpr size_t kStack = 128 << 10;
constexpr int kWarp = 32;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Copy {
  void* to;
  const void* from;
  int bytes, padded;
};

// A place to go on at. A switch between contexts calls the system; one between jumps, which sanitizers do not follow,
// does not.
struct Flow {
  ucontext_t context = {};
  jmp_buf jump = {};
  bool begun = false;  // false: at the entry of the context
};

void go_on(Flow& from, Flow& to) {
#if defined(DISSIM_TSAN) || defined(DISSIM_ASAN)
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump)) return;
  from.begun = true;
  if (to.begun) _longjmp(to.jump, 1);
  setcontext(&to.context);
#endif
}

struct Fiber {
  Flow flow;
  Coordinates thread;
  State state = State::ready;
  Place place = {"", 0};
  unsigned mask = 0;
  unsigned block_barriers = 0, warp_barriers = 0, exchanges = 0;  // how many it has passed
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);  // of copies on their way, the last open
  void *tsan = nullptr, *asan = nullptr;
};

// Where barriers tell ThreadSanitizer what happens before what. Two, in turn: with one, a barrier would also order what
// comes after the next.
struct Order {
  char token[2];
};

struct Warp {
  uint64_t values[2][kWarp] = {};  // of this exchange and the next
  Order order;
};

struct Block {
  Coordinates grid, block;
  void (*body)(void*);
  void* argument;
  std::vector<Fiber> fibers = {};
  std::vector<Warp> warps = {};
  void* shared = nullptr;
  Order order = {};
  char begin = 0, end = 0;
  Flow scheduler = {};
  void *scheduler_tsan = nullptr, *scheduler_asan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
};

Block* running;
Fiber* me;

bool setting(const char* name, const char* value) {
  const char* set = getenv(name);
  return set && !strcmp(set, value);
}

int index_of(const Fiber& fiber) { return int(fiber.thread.x); }

[[noreturn]] void stop(const char* what, const Fiber& a, const Fiber& b) {
  fprintf(stderr, "cuda_on_host: %s: thread %d at %s:%d, thread %d at %s:%d, block (%u, %u)\n", what, index_of(a),
          a.place.file, a.place.line, index_of(b), b.place.file, b.place.line, running->block.x, running->block.y);
  abort();
}

void land(const Copy& copy) {
  TSAN(if (copy.bytes) __tsan_read_range(const_cast<void*>(copy.from), copy.bytes));
  TSAN(__tsan_write_range(copy.to, copy.padded));
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.padded - copy.bytes);
}

void to_scheduler() {
  Fiber* const fiber = me;
  ASAN(__sanitizer_start_switch_fiber(fiber->state == State::done ? nullptr : &fiber->asan, running->scheduler_stack,
                                      running->scheduler_size));
  TSAN(__tsan_switch_to_fiber(running->scheduler_tsan, __tsan_switch_to_fiber_no_sync));
  go_on(fiber->flow, running->scheduler);
  ASAN(__sanitizer_finish_switch_fiber(fiber->asan, &running->scheduler_stack, &running->scheduler_size));
}

void to_fiber(Fiber& fiber, void* stack) {
  me = &fiber;
  ASAN(__sanitizer_start_switch_fiber(&running->scheduler_asan, stack, kStack));
  TSAN(__tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync));
  (void)stack;
  go_on(running->scheduler, fiber.flow);
  ASAN(__sanitizer_finish_switch_fiber(running->scheduler_asan, nullptr, nullptr));
}

void begin_fiber() {
  TSAN(__tsan_acquire(&running->begin));
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &running->scheduler_stack, &running->scheduler_size));
  running->body(running->argument);
  TSAN(__tsan_release(&running->end));
  me->state = State::done;
  to_scheduler();
}

void wait(State at, unsigned mask, Place place) {
  me->state = at;
  me->mask = mask;
  me->place = place;
  to_scheduler();
}

// Lets go on the lanes of every warp barrier at which all lanes of the mask have arrived.
bool release_warps(Block& b) {
  bool released = false;
  for (Fiber& fiber : b.fibers) {
    if (fiber.state != State::at_warp_barrier) continue;
    const int first = index_of(fiber) / kWarp * kWarp;
    bool all = true;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      const Fiber& other = b.fibers[first + lane];
      if (other.state == State::done || other.state == State::at_block_barrier)
        stop("a lane of the mask has left or waits for the block", fiber, other);
      if (other.state == State::ready)
        all = false;
      else if (other.place.line != fiber.place.line || other.mask != fiber.mask)
        stop("lanes of one mask wait at different places", fiber, other);
    }
    if (!all) continue;
    for (int lane = 0; lane < kWarp; ++lane)
      if (fiber.mask >> lane & 1) b.fibers[first + lane].state = State::ready;
    released = true;
  }
  return released;
}

// Lets go on the block's threads where all wait; says whether they do.
bool release_block(Block& b) {
  const Fiber *waiting = nullptr, *left = nullptr;
  for (const Fiber& fiber : b.fibers) {
    if (fiber.state == State::done)
      left = &fiber;
    else if (fiber.state != State::at_block_barrier)
      return false;
    else if (waiting && waiting->place.line != fiber.place.line)
      stop("threads wait at different barriers", *waiting, fiber);
    else
      waiting = &fiber;
  }
  if (left && waiting) stop("a thread has left before the barrier", *left, *waiting);
  for (Fiber& fiber : b.fibers)
    if (fiber.state == State::at_block_barrier) fiber.state = State::ready;
  return waiting;
}

void run_block(Block& b) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  static std::vector<void*> tsan_fibers;  // pooled: the sanitizer has room for some thousand
  const size_t count = b.fibers.size();
  while (stacks.size() < count) stacks.emplace_back(new char[kStack]);
  TSAN(while (tsan_fibers.size() < count) tsan_fibers.push_back(__tsan_create_fiber(0)));
  TSAN(b.scheduler_tsan = __tsan_get_current_fiber());
  TSAN(__tsan_release(&b.begin));
  const bool reverse = setting("DISSIM_HOST_ORDER", "reverse"), shuffled = setting("DISSIM_HOST_ORDER", "shuffled");
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = b.fibers[i];
    order[i] = reverse ? count - 1 - i : i;
    TSAN(fiber.tsan = tsan_fibers[i]);
    ucontext_t& context = fiber.flow.context;
    getcontext(&context);
    context.uc_stack = {.ss_sp = stacks[i].get(), .ss_flags = 0, .ss_size = kStack};
    context.uc_link = nullptr;
    makecontext(&context, begin_fiber, 0);
  }
  std::mt19937 random(b.block.x + 7919 * b.block.y);
  for (size_t left = count; left;) {
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (size_t i : order) {
      Fiber& fiber = b.fibers[i];
      if (fiber.state != State::ready) continue;
      moved = true;
      to_fiber(fiber, stacks[i].get());
      left -= fiber.state == State::done;
    }
    const bool warps = release_warps(b), block = left && release_block(b);
    if (left && !moved && !warps && !block) stop("nobody can go on", b.fibers[0], b.fibers[count - 1]);
  }
  TSAN(__tsan_acquire(&b.end));
}

}  // namespace

const Coordinates& thread() { return me->thread; }
const Coordinates& block() { return running->block; }
const Coordinates& grid() { return running->grid; }
void* dynamic_shared() { return running->shared; }

void sync_block(Place place) {
  char* const token = &running->order.token[me->block_barriers++ & 1];
  (void)token;
  TSAN(__tsan_release(token));
  wait(State::at_block_barrier, 0, place);
  TSAN(__tsan_acquire(token));
}

void sync_warp(unsigned mask, Place place) {
  char* const token = &running->warps[index_of(*me) / kWarp].order.token[me->warp_barriers++ & 1];
  (void)token;
  TSAN(__tsan_release(token));
  wait(State::at_warp_barrier, mask, place);
  TSAN(__tsan_acquire(token));
}

uint64_t exchange(unsigned mask, uint64_t value, int source, Place place) {
  if (!(mask >> lane() & 1)) stop("a lane is not of its own mask", *me, *me);
  Warp& warp = running->warps[index_of(*me) / kWarp];
  uint64_t* const values = warp.values[me->exchanges++ & 1];
  values[lane()] = value;
  wait(State::at_warp_barrier, mask, place);
  return mask >> (source & 31) & 1 ? values[source & 31] : ~uint64_t(0);
}

unsigned sum(unsigned mask, unsigned value, Place place) {
  const uint64_t* const values = running->warps[index_of(*me) / kWarp].values[me->exchanges & 1];
  exchange(mask, value, lane(), place);
  unsigned total = 0;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) total += unsigned(values[i]);
  return total;
}

unsigned vote(unsigned mask, bool predicate, Place place) {
  const uint64_t* const values = running->warps[index_of(*me) / kWarp].values[me->exchanges & 1];
  exchange(mask, predicate, lane(), place);
  unsigned bits = 0;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1) bits |= unsigned(values[i] != 0) << i;
  return bits;
}

void copy_async(void* to, const void* from, int bytes, int padded) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
    stop("a copy is not aligned", *me, *me);
  const Copy copy = {to, from, bytes, padded};
  static const bool early = setting("DISSIM_HOST_COPIES", "early");
  if (early)
    land(copy);
  else
    me->groups.back().push_back(copy);
}

void end_group() { me->groups.emplace_back(); }

void wait_for_groups(int still_going) {
  auto& groups = me->groups;
  while (int(groups.size()) - 1 > still_going) {
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

void run(const void* kernel, Coordinates grid, unsigned threads, int shared_bytes, void (*body)(void*),
         void* argument) {
  if (!may_launch(kernel, grid, shared_bytes)) return;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      Block b{grid, {x, y, 0}, body, argument};
      b.fibers.resize(threads);
      b.warps.resize((threads + kWarp - 1) / kWarp);
      for (unsigned i = 0; i < threads; ++i) b.fibers[i].thread = {i, 0, 0};
      if (shared_bytes && posix_memalign(&b.shared, 128, size_t(shared_bytes))) abort();
      if (shared_bytes) memset(b.shared, 0xff, size_t(shared_bytes));  // NaN in every format
      running = &b;
      run_block(b);
      free(b.shared);
      running = nullptr;
    }
}

}  // namespace cuda_on_host
