// Scratch memory of every thread of a parallel region, taken before the region: inside, nothing can fail.
#pragma once

#include <omp.h>

#include "cpu/workspace.h"
#include "simd.h"

namespace spfde::cpu::SPFDE_ISA {

// `count` values of T for each of `threads` threads, on cache lines of their own.
template <typename T>
struct PerThread {
  PerThread(Scratch& scratch, int threads, int64_t count)
      : stride(round_up(count, 64 / sizeof(T))), all(take<T>(scratch, threads * stride)) {}

  T* of(int64_t thread) const { return all + thread * stride; }
  T* mine() const { return of(omp_get_thread_num()); }

  int64_t stride;
  T* all;
};

}  // namespace spfde::cpu::SPFDE_ISA
