// Y = X W^T + bias, or DX = DY W, for a W stored in blocks, by the tiles of a GPU (tiles.h): of W for the first, of its
// transpose for the second.
#pragma once

#include <cstdint>

#include "spfde/dtype.h"
#include "spfde/tiles.h"

namespace spfde {

struct BlockSpmmArgs {
  int64_t outer, inner;   // features of Y and X: rows and columns of W, for the input gradient the other way round
  int64_t batch;          // rows of X [batch, inner] and Y [batch, outer]
  int64_t height, width;  // of a block: 16, 32, 64 or 128
  bool transposed;        // the input gradient: `tiles` are those of W transposed
  Tiles tiles;            // together * (height, transposed: width) <= 128
  const void* values;     // [blocks, height, width]; what lies outside of W is zero
  const void* bias;       // [outer] or nullptr
  const void* x;
  void* y;                       // every element written
  DType dtype = DType::float32;  // of values, bias, x and y
  bool tf32 = false;             // whether float32 factors may be rounded to TF32
};

}  // namespace spfde
