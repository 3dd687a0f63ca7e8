#include "spfde/masked.h"

#include <algorithm>

namespace spfde {

void scatter_values(int64_t rows, int64_t cols, const int32_t* row_ptr, const int32_t* col, const float* values,
                    float* dense, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) dense[r * cols + col[k]] = values[k];
}

void gather_values(int64_t rows, int64_t cols, int64_t capacity, const int32_t* row_ptr, const int32_t* col,
                   const float* dense, float* values, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) values[k] = dense[r * cols + col[k]];
  std::fill(values + row_ptr[rows], values + capacity, 0.f);
}

}  // namespace spfde
