// Instruction sets the CPU kernels are compiled for, and the one in use.
//
// Every file in csrc/cpu is compiled once per instruction set inside `namespace spfde::<isa>`; an op's header
// declares those copies with SPFDE_PER_ISA and dispatch.cpp forwards to the copy that isa() names.
#pragma once

#include <string>
#include <vector>

// X(name) for every instruction set compiled into this binary, widest last.
#ifdef SPFDE_HAVE_BASELINE
#define SPFDE_X_BASELINE(X) X(baseline)
#else
#define SPFDE_X_BASELINE(X)
#endif
#ifdef SPFDE_HAVE_AVX2
#define SPFDE_X_AVX2(X) X(avx2)
#else
#define SPFDE_X_AVX2(X)
#endif
#ifdef SPFDE_HAVE_AVX512
#define SPFDE_X_AVX512(X) X(avx512)
#else
#define SPFDE_X_AVX512(X)
#endif
#ifdef SPFDE_HAVE_NEON
#define SPFDE_X_NEON(X) X(neon)
#else
#define SPFDE_X_NEON(X)
#endif
#define SPFDE_FOR_EACH_ISA(X) SPFDE_X_BASELINE(X) SPFDE_X_AVX2(X) SPFDE_X_AVX512(X) SPFDE_X_NEON(X)

// Declares `void op(const Args&)` and its per-instruction-set copies.
#define SPFDE_DECLARE_BASELINE(op, Args) \
  namespace baseline {                   \
  void op(const Args&);                  \
  }
#define SPFDE_DECLARE_AVX2(op, Args) \
  namespace avx2 {                   \
  void op(const Args&);              \
  }
#define SPFDE_DECLARE_AVX512(op, Args) \
  namespace avx512 {                   \
  void op(const Args&);                \
  }
#define SPFDE_DECLARE_NEON(op, Args) \
  namespace neon {                   \
  void op(const Args&);              \
  }
#define SPFDE_PER_ISA(op, Args)    \
  void op(const Args&);            \
  SPFDE_DECLARE_BASELINE(op, Args) \
  SPFDE_DECLARE_AVX2(op, Args)     \
  SPFDE_DECLARE_AVX512(op, Args)   \
  SPFDE_DECLARE_NEON(op, Args)

namespace spfde {

enum class Isa { baseline, avx2, avx512, neon };

const char* isa_name(Isa isa);
std::vector<Isa> compiled_isas();  // narrowest first
std::vector<Isa> runnable_isas();  // those of compiled_isas() that this CPU executes

// The instruction set in use: SPFDE_ISA if set, else the widest runnable one. Decided at the first call.
// Throws std::invalid_argument when SPFDE_ISA names none of runnable_isas().
Isa isa();

}  // namespace spfde
