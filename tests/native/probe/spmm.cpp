// What the instruction set `probe`, which only these tests have, overrides: as csrc/cpu/<isa>/*.cpp would.
#include "cpu/float32.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// The shared kernel, then a mark.
void marked_spmm(const SpmmArgs& args, const Exec& exec) {
  spmm(args, exec);
  floats(args.y)[0] += 1;
}

}  // namespace

void override_kernels(Kernels& kernels) { kernels.spmm = marked_spmm; }

}  // namespace spfde::cpu::SPFDE_ISA
