#include "spfde/spmm.h"
#include "spfde/workspace.h"

namespace spfde {

const float* permuted(const float* values, const int32_t* perm, int64_t n, int threads) {
  if (perm == nullptr) return values;
  float* out = scratch<float>(Scratch::values, n);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k = 0; k < n; ++k) out[k] = values[perm[k]];
  return out;
}

}  // namespace spfde
