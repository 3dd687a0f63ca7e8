// Instruction sets the CPU kernels are compiled for, and the one in use. CMakeLists.txt lists them.
#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace spfde::cpu {

struct Isa {
  const char* name;
  bool runs;  // whether this CPU executes it
  Kernels (*table)();
};

std::vector<Isa> compiled_isas();  // narrowest first
std::vector<Isa> runnable_isas();  // those that run

// The instruction set in use: SPFDE_ISA if set, else the widest runnable one. Decided at the first call.
// Throws std::invalid_argument when SPFDE_ISA names none of runnable_isas().
const Isa& isa();

const Kernels& kernels();  // of isa()

}  // namespace spfde::cpu
