// Y = X W^T + bias for a sparse W: forward of a linear layer, and its input gradient through the transposed index.
#pragma once

#include <cstdint>

#include "spfde/isa.h"

namespace spfde {

struct SpmmArgs {
  int64_t rows;            // rows of W
  int64_t cols;            // columns of W
  int64_t batch;           // rows of X and Y, or images x positions
  int64_t positions;       // 1: X [batch, cols] and Y [batch, rows]; P: X [images, cols, P] and Y [images, rows, P]
  const int32_t* row_ptr;  // [rows + 1] ascending, row_ptr[0] == 0
  const int32_t* col;      // [nnz] column of each stored weight, ascending within a row
  const float* values;     // [nnz]
  const int32_t* perm;     // [nnz]: stored weight k is values[perm[k]]; or nullptr
  const float* bias;       // [rows] or nullptr
  const float* x;          // see positions
  float* y;                // see positions, every element written
  int threads;             // >= 1
};

SPFDE_PER_ISA(spmm, SpmmArgs)

// values[perm[k]] for k < n in scratch memory of the calling thread; `values` itself if perm is nullptr.
const float* permuted(const float* values, const int32_t* perm, int64_t n, int threads);

}  // namespace spfde
