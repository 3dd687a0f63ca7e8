#include "spfde/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace spfde {
namespace {

bool runs(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    case Isa::neon:
      return false;
  }
  return false;
#else
  return isa == Isa::neon || isa == Isa::baseline;
#endif
}

Isa choose() {
  const std::vector<Isa> runnable = runnable_isas();
  const char* forced = std::getenv("SPFDE_ISA");
  if (forced == nullptr || *forced == '\0') return runnable.back();
  std::string names;
  for (Isa isa : runnable) {
    if (std::string(forced) == isa_name(isa)) return isa;
    names += names.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("SPFDE_ISA: expected one of " + names + ", got '" + forced +
                              "', try unsetting it to use the widest instruction set of this CPU");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
  }
  return "unknown";
}

std::vector<Isa> compiled_isas() {
#define SPFDE_LIST(name) Isa::name,
  return {SPFDE_FOR_EACH_ISA(SPFDE_LIST)};
#undef SPFDE_LIST
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> out;
  for (Isa isa : compiled_isas())
    if (runs(isa)) out.push_back(isa);
  return out;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace spfde
