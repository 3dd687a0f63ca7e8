// dW = dY^T X at the stored positions of W only, with the bias gradient in the same pass.
//
// batch and positions: as in spmm.h, dY lying like Y.
#pragma once

#include <cstdint>

#include "spfde/block_index.h"
#include "spfde/dtype.h"
#include "spfde/panel_order.h"

namespace spfde {

struct SddmmArgs {
  int64_t rows;  // of W = columns of dY
  int64_t cols;  // of W = columns of X
  int64_t batch, positions;
  int64_t capacity;        // slots of dvalues, >= nnz
  const int32_t* row_ptr;  // [rows + 1]
  const int32_t* col;      // [nnz] ascending within a row
  const void* dy;
  const void* x;
  void* dvalues;                      // [capacity] written, 0 past nnz
  void* dbias;                        // [rows] written, or nullptr
  DType dtype = DType::float32;       // of dy, x, dvalues and dbias
  const PanelOrder* order = nullptr;  // of the index; nullptr: made in the call
};

// The same for blocks.
struct SddmmBlocksArgs {
  int64_t rows, cols, batch, positions;
  int64_t capacity;  // blocks in dvalues, >= those stored
  BlockIndex index;
  const void* dy;
  const void* x;
  void* dvalues;                      // [capacity, height, width] written, 0 past the stored blocks
  void* dbias;                        // [rows] written, or nullptr
  DType dtype = DType::float32;       // of dy, x, dvalues and dbias
  const PanelOrder* order = nullptr;  // of the index; nullptr: made in the call
};

}  // namespace spfde
