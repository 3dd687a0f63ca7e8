// dW = dY^T X at the stored positions of W only, with the bias gradient in the same pass.
#pragma once

#include <cstdint>

#include "spfde/isa.h"

namespace spfde {

struct SddmmArgs {
  int64_t rows;            // rows of W = columns of dY
  int64_t cols;            // columns of W = columns of X
  int64_t batch;           // rows of X and dY, or images x positions
  int64_t positions;       // 1: X [batch, cols] and dY [batch, rows]; P: X [images, cols, P] and dY [images, rows, P]
  int64_t capacity;        // slots of dvalues, >= nnz
  const int32_t* row_ptr;  // [rows + 1]
  const int32_t* col;      // [nnz] ascending within a row
  const float* dy;         // see positions
  const float* x;          // see positions
  float* dvalues;          // [capacity] written, 0 past nnz
  float* dbias;            // [rows] written, or nullptr
  int threads;             // >= 1
};

SPFDE_PER_ISA(sddmm, SddmmArgs)

}  // namespace spfde
