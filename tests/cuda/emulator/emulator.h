// Runs CUDA kernels on the CPU: every thread of a block is a fiber, a barrier or a collective of a warp is where it
// yields.
//
// Blocks run one after another. Between two yields a fiber runs alone, so what is undefined on a GPU (a missing
// barrier) shows as a wrong result in one order of the fibers or another, and as a data race under ThreadSanitizer in
// all of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Which fiber runs next, where the kernel leaves it open.
enum class Order {
  lock_step,    // all threads up to their next yield, then all again
  warp_greedy,  // one warp as far as it comes without the others; blocks from the last to the first
  random,       // any thread that can run; blocks in any order
};

struct Schedule {
  Order order = Order::lock_step;
  unsigned seed = 0;
};

// The schedule of the launches that follow.
void schedule(Schedule next);

// Runs kernel(argument) once for each thread of the grid. Prints and aborts where threads wait for what never comes.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* argument);

// ---- what a running kernel asks ----

int lane();
unsigned char* shared_memory();  // of the launch, not initialised, exactly as many bytes as were asked for

void synchronize_block();

enum class Collective { sync, shuffle, ballot, exchange };

// Waits until every lane of the mask is here with the same collective; `in` and `out` are one word of each lane.
// sync orders memory; shuffle (in: value, from: lane) and ballot (in: predicate) do not, as on a GPU.
uint32_t warp_collective(Collective kind, uint32_t mask, uint32_t in, int from);

// What every lane of the warp gave, until the lane's next collective; all lanes take part.
using Words = std::array<uint32_t, 6>;
const Words* warp_exchange(const Words& mine);

// A copy of 16 bytes to shared memory that a thread has started: from nullptr it writes zeros.
struct Copy {
  void* to;
  const void* from;
  int group;
};
struct Copies {
  std::deque<Copy> pending;
  int groups = 0;  // that were closed
  bool at_once = false;
};
Copies& copies_of_thread();

[[noreturn]] void fail(const char* what);

}  // namespace emulator
