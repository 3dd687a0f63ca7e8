#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "isas.h"  // made by CMake: SPFDE_FOR_EACH_ISA(X), with X(name, whether this CPU runs it), narrowest first

namespace spfde::cpu {

#define SPFDE_DECLARE(name, runs) \
  namespace name {                \
  Kernels table();                \
  }
SPFDE_FOR_EACH_ISA(SPFDE_DECLARE)

namespace {

Isa choose() {
  const std::vector<Isa> runnable = runnable_isas();
  const char* forced = std::getenv("SPFDE_ISA");
  if (forced == nullptr || *forced == '\0') return runnable.back();
  std::string names;
  for (const Isa& isa : runnable) {
    if (std::string(forced) == isa.name) return isa;
    names += names.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("SPFDE_ISA: expected one of " + names + ", got '" + forced +
                              "', try unsetting it to use the widest instruction set of this CPU");
}

}  // namespace

std::vector<Isa> compiled_isas() {
#define SPFDE_ROW(name, runs) {#name, runs, name::table},
  return {SPFDE_FOR_EACH_ISA(SPFDE_ROW)};
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> out;
  for (const Isa& isa : compiled_isas())
    if (isa.runs) out.push_back(isa);
  return out;
}

const Isa& isa() {
  static const Isa chosen = choose();
  return chosen;
}

const Kernels& kernels() {
  static const Kernels chosen = isa().table();
  return chosen;
}

}  // namespace spfde::cpu
