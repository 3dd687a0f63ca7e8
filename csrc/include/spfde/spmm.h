// Y = X W^T + bias for a sparse W: forward of a linear layer, and its input gradient through the transposed index.
//
// batch counts rows of X and Y, or images x positions. With positions == 1, X is [batch, cols] and Y [batch, rows];
// with P positions, X is [images, cols, P] and Y [images, rows, P] (a pointwise convolution).
#pragma once

#include <cstdint>

#include "spfde/block_index.h"
#include "spfde/dtype.h"
#include "spfde/epilogue.h"
#include "spfde/panel_order.h"

namespace spfde {

struct SpmmArgs {
  int64_t rows;  // of W
  int64_t cols;  // of W
  int64_t batch, positions;
  const int32_t* row_ptr;  // [rows + 1] ascending, row_ptr[0] == 0
  const int32_t* col;      // [nnz] column of each stored weight, ascending within a row
  const int32_t* perm;     // [nnz]: stored weight k is values[perm[k]]; or nullptr
  const void* values;      // [nnz]
  const void* bias;        // [rows] or nullptr
  const void* x;
  void* y;                            // every element written
  DType dtype = DType::float32;       // of values, bias, x and y
  const PanelOrder* order = nullptr;  // of the index; nullptr: made in the call
  Epilogue epilogue = {};             // on CUDA alone; its shift instead of the bias
};

// The same for blocks.
struct SpmmBlocksArgs {
  int64_t rows, cols, batch, positions;
  BlockIndex index;
  const void* values;  // [blocks, height, width]
  const void* bias;    // [rows] or nullptr
  const void* x;
  void* y;                            // every element written
  DType dtype = DType::float32;       // of values, bias, x and y
  const PanelOrder* order = nullptr;  // of the index; nullptr: made in the call
};

// DX = DY W for blocks; DY lies like Y, DX like X.
struct SpmmBlocksInputGradArgs {
  int64_t rows, cols, batch, positions;
  BlockIndex index;
  const void* values;  // [blocks, height, width]
  const void* dy;
  void* dx;                           // every element written
  DType dtype = DType::float32;       // of values, dy and dx
  const PanelOrder* order = nullptr;  // of the index; nullptr: made in the call
};

}  // namespace spfde
