// dW = dY^T X at the stored blocks of W only, with the bias gradient in the same pass, by the tiles of a GPU (tiles.h).
#pragma once

#include <cstdint>

#include "spfde/dtype.h"
#include "spfde/tiles.h"

namespace spfde {

struct BlockSddmmArgs {
  int64_t rows, cols;         // of W = columns of dY [batch, rows] and X [batch, cols]
  int64_t batch;              // rows of dY and X
  int64_t height, width;      // of a block: 16, 32, 64 or 128
  int64_t capacity;           // blocks in dvalues, >= those stored
  Tiles tiles;                // of W; together * height <= 128
  const int32_t* unit_count;  // one number: how many units (columns of blocks) are stored
  const void* dy;
  const void* x;
  void* dvalues;                 // [capacity, height, width] written, 0 past the stored blocks
  void* dbias;                   // [rows] written, or nullptr
  DType dtype = DType::float32;  // of dy, x, dvalues and dbias
  bool tf32 = false;             // whether float32 factors may be rounded to TF32
};

}  // namespace spfde
