// Between stored values and a dense weight: what the masked dense route needs besides the dense product itself.
#pragma once

#include <cstdint>

namespace spfde {

// dense[r, col[k]] = values[k] for every stored weight; other elements of dense [rows, cols] are left alone.
void scatter_values(int64_t rows, int64_t cols, const int32_t* row_ptr, const int32_t* col, const float* values,
                    float* dense, int threads);

// values[k] = dense[r, col[k]] for every stored weight; values[nnz : capacity] = 0.
void gather_values(int64_t rows, int64_t cols, int64_t capacity, const int32_t* row_ptr, const int32_t* col,
                   const float* dense, float* values, int threads);

}  // namespace spfde
