// Which instruction sets there are, and that one may have kernels of its own.
#include <stdexcept>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

using namespace test;
using namespace spfde;

namespace {

// W = [3], X = [5], DY = [7].
const int32_t kRowPtr[] = {0, 1}, kCol[] = {0};
const float kValue = 3, kX = 5, kDy = 7;

float multiplied(const cpu::Kernels& kernels) {
  float y = 0;
  kernels.spmm({.rows = 1,
                .cols = 1,
                .batch = 1,
                .positions = 1,
                .row_ptr = kRowPtr,
                .col = kCol,
                .perm = nullptr,
                .values = &kValue,
                .bias = nullptr,
                .x = &kX,
                .y = &y},
               {});
  return y;
}

float correlated(const cpu::Kernels& kernels) {
  float dvalue = 0;
  kernels.sddmm({.rows = 1,
                 .cols = 1,
                 .batch = 1,
                 .positions = 1,
                 .capacity = 1,
                 .row_ptr = kRowPtr,
                 .col = kCol,
                 .dy = &kDy,
                 .x = &kX,
                 .dvalues = &dvalue,
                 .dbias = nullptr},
                {});
  return dvalue;
}

}  // namespace

void test_isas() {
  const std::vector<cpu::Isa> runnable = cpu::runnable_isas();
  expect(runnable.size() > 1, "an instruction set that runs here");  // beside the probe
#if defined(__aarch64__)
  expect(runnable.back().name == std::string("neon"), "aarch64 runs NEON");
#endif
  for (const cpu::Isa& isa : runnable) {
    const bool probe = isa.name == std::string("probe");
    const cpu::Kernels kernels = isa.table();
    expect(multiplied(kernels) == (probe ? 16 : 15), isa.name + std::string(": the kernel of its own, if it has one"));
    expect(correlated(kernels) == 35, isa.name + std::string(": the shared kernel"));
  }
}

void test_types() {
  bool refused = false;
  SpmmArgs args{};
  args.dtype = DType::bfloat16;
  try {
    cpu::spmm(args, {});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused, "a type that the CPU's kernels cannot read");
}
