// conv2d by a W stored in blocks, by the tiles of a GPU (tiles.h): forward, input gradient, weight gradient.
//
// Images are [batch, height, width, channels] (channels_last). A block is `height` output channels x `width`
// consecutive input channels of a group at one tap; its column is channel block x taps + tap, its row output channel /
// height, and out_channels / groups is a multiple of together * height where there are several groups. Rows of the
// transposed tiles are channel blocks, so many of each group of the convolution as fill whole groups of `together`;
// group after group of the convolution, and all of them again for each residue modulo the stride that a tap may have
// (stride_h x stride_w, a tap's is (i * dilation_h) % stride_h and the like). Their columns are output block x taps +
// tap. No group of rows is cut.
#pragma once

#include <cstdint>

#include "spfde/conv2d.h"
#include "spfde/dtype.h"
#include "spfde/tiles.h"

namespace spfde {

struct BlockConv2dArgs {
  Conv2dShape shape;
  int64_t height, width;         // of a block: 16, 32, 64 or 128
  bool transposed;               // the input gradient: `tiles` are those of W transposed
  Tiles tiles;                   // together * (height, transposed: width) <= 128
  const void* values;            // [blocks, height, width]; what lies outside of W is zero
  const void* bias;              // [out_channels] or nullptr
  const void* x;                 // images of Y's inputs, transposed: DY
  void* y;                       // transposed: DX; every element written
  DType dtype = DType::float32;  // of values, bias, x and y
  bool tf32 = false;             // whether float32 factors may be rounded to TF32
};

struct BlockConv2dWeightGradArgs {
  Conv2dShape shape;
  int64_t height, width;      // of a block: 16, 32, 64 or 128
  int64_t capacity;           // blocks in dvalues, >= those stored
  Tiles tiles;                // of W; together * height <= 128
  const int32_t* unit_count;  // one number: how many units (columns of blocks) are stored
  const void* dy;
  const void* x;
  void* dvalues;                 // [capacity, height, width] written, 0 past the stored blocks
  void* dbias;                   // [out_channels] written, or nullptr
  DType dtype = DType::float32;  // of dy, x, dvalues and dbias
  bool tf32 = false;             // whether float32 factors may be rounded to TF32
};

}  // namespace spfde
