#include "spfde/scatter.h"

#include <algorithm>

#include "cpu/float32.h"
#include "cpu/ops.h"

namespace spfde::cpu {

void scatter(const ScatterArgs& a, const Exec& exec) {
  require_float32(a.dtype);
  const float* values = floats(a.values);
  float* dense = floats(a.dense);
#pragma omp parallel for schedule(static) num_threads(exec.threads)
  for (int64_t r = 0; r < a.rows; ++r)
    for (int32_t k = a.row_ptr[r]; k < a.row_ptr[r + 1]; ++k) dense[r * a.cols + a.col[k]] = values[k];
}

void gather(const GatherArgs& a, const Exec& exec) {
  require_float32(a.dtype);
  const float* dense = floats(a.dense);
  float* values = floats(a.values);
#pragma omp parallel for schedule(static) num_threads(exec.threads)
  for (int64_t r = 0; r < a.rows; ++r)
    for (int32_t k = a.row_ptr[r]; k < a.row_ptr[r + 1]; ++k) values[k] = dense[r * a.cols + a.col[k]];
  std::fill(values + a.row_ptr[a.rows], values + a.capacity, 0.f);
}

}  // namespace spfde::cpu
