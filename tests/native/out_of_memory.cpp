// Every allocation of scratch memory fails once, in every op: what leaves the op is std::bad_alloc, and the next call
// in the same thread has the right result.
#include <cstdlib>
#include <new>
#include <thread>

#include "cases.h"
#include "check.h"

namespace {

thread_local int allocations_left = -1;  // -1: any number

// Whether a run in a thread that has no scratch memory yet failed, when only so many allocations succeed.
bool fails_after(int allocations, const test::Run& run) {
  bool failed = false;
  std::thread([&] {
    allocations_left = allocations;
    try {
      run();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (failed) run();
  }).join();
  return failed;
}

}  // namespace

// Takes the place of the C library's; scratch memory alone comes from here.
extern "C" void* aligned_alloc(size_t alignment, size_t size) noexcept {
  if (allocations_left == 0) return nullptr;
  if (allocations_left > 0) --allocations_left;
  void* data = nullptr;
  return posix_memalign(&data, alignment, size) == 0 ? data : nullptr;
}

void test_out_of_memory() {
  for (const auto& cases : {linear_cases(), conv2d_cases(), conv_chain_cases(), norm_act_cases()}) {
    int failed = 0;
    for (const test::Run& run : cases)
      for (int allocations = 0; fails_after(allocations, run); ++allocations) ++failed;
    test::expect(failed > static_cast<int>(cases.size()), "allocations that fail");
  }
}
