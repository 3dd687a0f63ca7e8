// Between stored values and a dense weight: what the masked dense route needs besides the dense product itself.
#pragma once

#include <cstdint>

#include "spfde/dtype.h"

namespace spfde {

// dense[r, col[k]] = values[k] for every stored weight; other elements are left alone.
struct ScatterArgs {
  int64_t rows, cols;
  const int32_t* row_ptr;        // [rows + 1]
  const int32_t* col;            // [nnz]
  const void* values;            // [nnz]
  void* dense;                   // [rows, cols]
  DType dtype = DType::float32;  // of values and dense
};

// values[k] = dense[r, col[k]] for every stored weight; 0 past nnz.
struct GatherArgs {
  int64_t rows, cols;
  int64_t capacity;              // slots of values, >= nnz
  const int32_t* row_ptr;        // [rows + 1]
  const int32_t* col;            // [nnz]
  const void* dense;             // [rows, cols]
  void* values;                  // [capacity] written
  DType dtype = DType::float32;  // of dense and values
};

}  // namespace spfde
