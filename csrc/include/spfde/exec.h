// Where an op runs: beside its arguments, which are data alone.
#pragma once

#include <cstdint>

namespace spfde {

struct Exec {
  int threads = 1;       // on a CPU, >= 1: at most so many
  int device = -1;       // the CUDA device, -1 for the CPU
  uintptr_t stream = 0;  // the cudaStream_t that work is queued on, 0 for the default one
};

}  // namespace spfde
