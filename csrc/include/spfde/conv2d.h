// Two-dimensional cross-correlation with a sparse weight: forward, input gradient, weight gradient.
//
// Activations are [batch, channels, height, width], contiguous or (by their flag) channels_last. A stored weight of
// output channel o in group g has col = (c * kernel_h + i) * kernel_w + j with c the input channel counted inside the
// group.
#pragma once

#include <cstdint>

#include "spfde/block_index.h"
#include "spfde/dtype.h"
#include "spfde/epilogue.h"

namespace spfde {

struct Conv2dShape {
  int64_t batch;
  int64_t in_channels, in_h, in_w;
  int64_t out_channels, out_h, out_w;  // out_h, out_w >= 0 as given by the usual convolution arithmetic
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // bottom and right padding follow from out_h and out_w
  int64_t dilation_h, dilation_w;
  int64_t groups;
};

struct Conv2dArgs {
  Conv2dShape shape;
  const int32_t* row_ptr;  // [out_channels + 1]
  const int32_t* col;      // [nnz] ascending within a row
  const void* values;      // [nnz]
  const void* bias;        // [out_channels] or nullptr
  const void* x;           // [batch, in_channels, in_h, in_w]
  void* y;                 // [batch, out_channels, out_h, out_w] written
  bool x_channels_last, y_channels_last;
  DType dtype = DType::float32;  // of values, bias, x and y
  Epilogue epilogue = {};        // on CUDA alone; its shift instead of the bias
};

// The transposed index groups the weights of one input channel by the residue of their tap modulo the stride,
// because only those reach the same input pixels:
//   row r = (channel * stride_h + (i * dilation_h) % stride_h) * stride_w + (j * dilation_w) % stride_w
//   col   = (o * kernel_h + i) * kernel_w + j with o the output channel counted inside the group.
struct Conv2dInputGradArgs {
  Conv2dShape shape;
  const int32_t* row_ptr;  // [in_channels * stride_h * stride_w + 1]
  const int32_t* col;      // [nnz] ascending within a row
  const int32_t* perm;     // [nnz]: stored weight k of the transposed index is values[perm[k]]
  const void* values;      // [nnz]
  const void* dy;          // [batch, out_channels, out_h, out_w]
  void* dx;                // [batch, in_channels, in_h, in_w] written
  bool dy_channels_last, dx_channels_last;
  DType dtype = DType::float32;  // of values, dy and dx
};

struct Conv2dWeightGradArgs {
  Conv2dShape shape;
  int64_t capacity;        // slots of dvalues, >= nnz
  const int32_t* row_ptr;  // [out_channels + 1]
  const int32_t* col;      // [nnz] ascending within a row
  const void* dy;          // [batch, out_channels, out_h, out_w]
  const void* x;           // [batch, in_channels, in_h, in_w]
  bool dy_channels_last, x_channels_last;
  void* dvalues;                 // [capacity] written, 0 past nnz
  void* dbias;                   // [out_channels] written, or nullptr
  DType dtype = DType::float32;  // of dy, x, dvalues and dbias
};

// The same for blocks. Rows are output channels; out_channels / groups is a multiple of height.
struct Conv2dBlocksArgs {
  Conv2dShape shape;
  BlockIndex index;
  const void* values;  // [blocks, height, width]
  const void* bias;    // [out_channels] or nullptr
  const void* x;       // [batch, in_channels, in_h, in_w]
  void* y;             // [batch, out_channels, out_h, out_w] written
  bool x_channels_last, y_channels_last;
  DType dtype = DType::float32;  // of values, bias, x and y
};

struct Conv2dBlocksInputGradArgs {
  Conv2dShape shape;
  BlockIndex index;
  const void* values;  // [blocks, height, width]
  const void* dy;      // [batch, out_channels, out_h, out_w]
  void* dx;            // [batch, in_channels, in_h, in_w] written
  bool dy_channels_last, dx_channels_last;
  DType dtype = DType::float32;  // of values, dy and dx
};

struct Conv2dBlocksWeightGradArgs {
  Conv2dShape shape;
  int64_t capacity;  // blocks in dvalues, >= those stored
  BlockIndex index;
  const void* dy;  // [batch, out_channels, out_h, out_w]
  const void* x;   // [batch, in_channels, in_h, in_w]
  bool dy_channels_last, x_channels_last;
  void* dvalues;                 // [capacity, height, width] written, 0 past the stored blocks
  void* dbias;                   // [out_channels] written, or nullptr
  DType dtype = DType::float32;  // of dy, x, dvalues and dbias
};

}  // namespace spfde
