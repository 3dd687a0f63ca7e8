#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

// ThreadSanitizer's own interface for fibers, in programs that are built with it. This file is built without, so that
// the scheduler's reads of what fibers wrote are not taken for the kernel's.
extern "C" {
void* __tsan_get_current_fiber() __attribute__((weak));
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void __tsan_destroy_fiber(void*) __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __sanitizer_start_switch_fiber(void**, const void*, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) __attribute__((weak));
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr unsigned kUnordered = 1;  // a switch of fibers that orders no memory

enum class State { ready, at_block_barrier, at_collective, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  dim3 thread;
  State state;
  Collective kind;  // while at_collective, with what was given and what it answers
  uint32_t mask, in, out;
  int from;
  Words words;
  std::unique_ptr<Copies> copies;
  void* tsan = nullptr;
};

struct Launch {
  void (*kernel)(void*);
  void* argument;
  // Of each block so far: memory used again would be a race between blocks, since nothing orders them.
  std::vector<std::unique_ptr<unsigned char[]>> shared, stacks;
  std::vector<std::unique_ptr<Copies>> copies;
};

Schedule next_schedule;
Launch running;
std::vector<Fiber> fibers;  // of the block that runs; the first `threads`
int threads, current;
ucontext_t scheduler;
void* scheduler_tsan;
void* scheduler_asan;
const void* scheduler_stack;
size_t scheduler_stack_size;
Words exchanged[32][kWarp];                    // by warp
char block_order, warp_order[32], grid_order;  // their addresses stand for what ThreadSanitizer orders

bool watched() { return __tsan_create_fiber != nullptr; }
void acquire(void* what) {
  if (watched()) __tsan_acquire(what);
}
void release(void* what) {
  if (watched()) __tsan_release(what);
}

void to_scheduler(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (watched()) __tsan_switch_to_fiber(scheduler_tsan, kUnordered);
  void* asan = nullptr;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(state == State::done ? nullptr : &asan, scheduler_stack, scheduler_stack_size);
  swapcontext(&fiber.context, &scheduler);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(asan, nullptr, nullptr);
}

void run(int thread) {
  Fiber& fiber = fibers[current = thread];
  threadIdx = fiber.thread;
  if (watched()) __tsan_switch_to_fiber(fiber.tsan, kUnordered);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler_asan, fiber.stack.get(), kStack);
  swapcontext(&scheduler, &fiber.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
}

void first_call() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  running.kernel(running.argument);
  if (!fibers[current].copies->pending.empty()) fail("a thread ends before it has waited for its copies");
  release(&grid_order);
  to_scheduler(State::done);
}

void prepare(int thread) {
  Fiber& fiber = fibers[thread];
  const dim3 size = blockDim;
  fiber.state = State::ready;
  fiber.copies.reset(new Copies);
  fiber.copies->at_once = next_schedule.order == Order::warp_greedy;
  fiber.thread = dim3(thread % size.x, thread / size.x % size.y, thread / (size.x * size.y));
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, first_call, 0);
  if (watched()) fiber.tsan = __tsan_create_fiber(0);
}

// The collective of the lanes that wait with the first one that does, if all lanes of its mask are there.
bool settle(int warp) {
  Fiber* lanes = &fibers[warp * kWarp];
  const int count = std::min(kWarp, threads - warp * kWarp);
  for (int first = 0; first < count; ++first) {
    if (lanes[first].state != State::at_collective) continue;
    const uint32_t mask = lanes[first].mask;
    const Collective kind = lanes[first].kind;
    bool whole = mask >> first & 1 && (count == kWarp || mask >> count == 0);
    for (int l = 0; l < count && whole; ++l)
      whole = !(mask >> l & 1) ||
              (lanes[l].state == State::at_collective && lanes[l].mask == mask && lanes[l].kind == kind);
    if (!whole) continue;
    if (kind == Collective::exchange)
      for (int l = 0; l < count; ++l) exchanged[warp][l] = lanes[l].words;
    uint32_t votes = 0;
    for (int l = 0; l < count; ++l)
      if (mask >> l & 1 && lanes[l].in) votes |= 1u << l;
    for (int l = 0; l < count; ++l) {
      if (!(mask >> l & 1)) continue;
      const int from = lanes[l].from & (kWarp - 1);
      if (kind == Collective::shuffle && !(mask >> from & 1)) fail("a shuffle reads a lane that is not in its mask");
      lanes[l].out = kind == Collective::shuffle ? lanes[from].in : votes;
      lanes[l].state = State::ready;
    }
    return true;
  }
  return false;
}

bool run_warp(int warp) {  // every lane that can, once
  bool ran = false;
  for (int t = warp * kWarp; t < std::min(threads, (warp + 1) * kWarp); ++t) {
    if (fibers[t].state != State::ready) continue;
    run(t);
    ran = true;
  }
  return ran;
}

// Whether any thread came further.
bool step(Order order, std::mt19937& random) {
  const int warps = (threads + kWarp - 1) / kWarp;
  bool ran = false;
  switch (order) {
    case Order::lock_step:
      for (int w = 0; w < warps; ++w) ran |= run_warp(w);
      for (int w = 0; w < warps; ++w) ran |= settle(w);
      break;
    case Order::warp_greedy:
      for (int w = warps - 1; w >= 0; --w)
        while (run_warp(w) || settle(w)) ran = true;
      break;
    case Order::random: {
      std::vector<int> ready;
      for (int t = 0; t < threads; ++t)
        if (fibers[t].state == State::ready) ready.push_back(t);
      std::shuffle(ready.begin(), ready.end(), random);
      ready.resize((ready.size() + 1) / 2);
      for (int t : ready) run(t);
      ran = !ready.empty();
      for (int w = 0; w < warps; ++w) ran |= settle(w);
      break;
    }
  }
  return ran;
}

void run_block(Order order, std::mt19937& random) {
  for (int t = 0; t < threads; ++t) prepare(t);
  for (;;) {
    if (step(order, random)) continue;
    int live = 0, waiting = 0;
    for (int t = 0; t < threads; ++t) {
      live += fibers[t].state != State::done;
      waiting += fibers[t].state == State::at_block_barrier;
    }
    if (live == 0) break;
    if (waiting < live) {
      std::fprintf(stderr, "emulator: %d of %d threads at a barrier, the others at a collective\n", waiting, live);
      fail("threads wait for what never comes");
    }
    for (int t = 0; t < threads; ++t)
      if (fibers[t].state == State::at_block_barrier) fibers[t].state = State::ready;
  }
  if (!watched()) return;
  for (int t = 0; t < threads; ++t) {
    __tsan_destroy_fiber(fibers[t].tsan);
    running.stacks.emplace_back(new unsigned char[kStack]);
    running.stacks.back().swap(fibers[t].stack);
    running.copies.push_back(std::move(fibers[t].copies));
  }
}

}  // namespace

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s, block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

void schedule(Schedule next) { next_schedule = next; }

void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* argument) {
  running = {kernel, argument, {}, {}, {}};
  gridDim = grid;
  blockDim = block;
  threads = static_cast<int>(block.x * block.y * block.z);
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(threads);
  if (watched()) scheduler_tsan = __tsan_get_current_fiber();
  std::mt19937 random(next_schedule.seed);
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (next_schedule.order == Order::warp_greedy) std::reverse(blocks.begin(), blocks.end());
  if (next_schedule.order == Order::random) std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned b : blocks) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    running.shared.emplace_back(new unsigned char[shared_bytes]);
    run_block(next_schedule.order, random);
  }
  acquire(&grid_order);
  running.shared.clear();
  running.stacks.clear();
  running.copies.clear();
}

int lane() { return current % kWarp; }
unsigned char* shared_memory() { return running.shared.back().get(); }

void synchronize_block() {
  release(&block_order);
  to_scheduler(State::at_block_barrier);
  acquire(&block_order);
}

Copies& copies_of_thread() { return *fibers[current].copies; }

const Words* warp_exchange(const Words& mine) {
  fibers[current].words = mine;
  warp_collective(Collective::exchange, ~0u, 0, 0);
  return exchanged[current / kWarp];
}

uint32_t warp_collective(Collective kind, uint32_t mask, uint32_t in, int from) {
  Fiber& fiber = fibers[current];
  fiber.kind = kind;
  fiber.mask = mask;
  fiber.in = in;
  fiber.from = from;
  if (!(mask >> lane() & 1)) fail("a lane calls a collective whose mask leaves it out");
  char* order = &warp_order[current / kWarp];
  if (kind == Collective::sync) release(order);
  to_scheduler(State::at_collective);
  if (kind == Collective::sync) acquire(order);
  return fibers[current].out;
}

}  // namespace emulator
