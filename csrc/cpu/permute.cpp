#include "cpu/workspace.h"

namespace spfde::cpu {

const float* permuted(const float* values, const int32_t* perm, int64_t n, int threads, Scratch& scratch) {
  if (perm == nullptr) return values;
  float* out = take<float>(scratch, n);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k = 0; k < n; ++k) out[k] = values[perm[k]];
  return out;
}

}  // namespace spfde::cpu
