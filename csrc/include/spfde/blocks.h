// The ops of spmm.h, sddmm.h and conv2d.h for weights stored in blocks of `height` rows x `width` input channels.
//
// A *unit* is one column of a block: `height` weights that share one input. Units are listed block by block, blocks
// ascending within a block row. Rows of the last block row that do not exist are ignored on the output side and count
// as zero on the gradient's. The input gradient reads the same index: it needs no transpose. batch and positions: see
// spmm.h.
#pragma once

#include <cstdint>

#include "spfde/conv2d.h"
#include "spfde/isa.h"

namespace spfde {

struct BlockIndex {
  int64_t height, width;
  const int32_t* unit_ptr;  // [ceil(rows / height) + 1] ascending, unit_ptr[0] == 0
  const int32_t* unit_col;  // [units] column of each unit
};

// Y = X W^T + bias.
struct SpmmBlocksArgs {
  int64_t rows, cols, batch, positions;
  BlockIndex index;
  const float* values;  // [blocks, height, width]
  const float* bias;    // [rows] or nullptr
  const float* x;       // as in spmm.h
  float* y;             // as in spmm.h, every element written
  int threads;
};

// DX = DY W.
struct SpmmBlocksInputGradArgs {
  int64_t rows, cols, batch, positions;
  BlockIndex index;
  const float* values;  // [blocks, height, width]
  const float* dy;      // as in spmm.h
  float* dx;            // as in spmm.h, every element written
  int threads;
};

// dW = dY^T X at the stored blocks only.
struct SddmmBlocksArgs {
  int64_t rows, cols, batch, positions;
  BlockIndex index;
  int64_t capacity;  // blocks in dvalues, >= those stored
  const float* dy;   // as in spmm.h
  const float* x;    // as in spmm.h
  float* dvalues;    // [capacity, height, width] written, 0 past the stored blocks
  float* dbias;      // [rows] written, or nullptr
  int threads;
};

SPFDE_PER_ISA(spmm_blocks, SpmmBlocksArgs)
SPFDE_PER_ISA(spmm_blocks_input_grad, SpmmBlocksInputGradArgs)
SPFDE_PER_ISA(sddmm_blocks, SddmmBlocksArgs)

// Rows are output channels; out_channels / groups is a multiple of height.
struct Conv2dBlocksArgs {
  Conv2dShape shape;
  BlockIndex index;
  const float* values;
  const float* bias;  // [out_channels] or nullptr
  const float* x;     // [batch, in_channels, in_h, in_w]
  float* y;           // [batch, out_channels, out_h, out_w] written
  bool x_channels_last, y_channels_last;
  int threads;
};

struct Conv2dBlocksInputGradArgs {
  Conv2dShape shape;
  BlockIndex index;
  const float* values;
  const float* dy;  // [batch, out_channels, out_h, out_w]
  float* dx;        // [batch, in_channels, in_h, in_w] written
  bool dy_channels_last, dx_channels_last;
  int threads;
};

struct Conv2dBlocksWeightGradArgs {
  Conv2dShape shape;
  BlockIndex index;
  const float* x;   // [batch, in_channels, in_h, in_w]
  const float* dy;  // [batch, out_channels, out_h, out_w]
  bool x_channels_last, dy_channels_last;
  int64_t capacity;  // blocks in dvalues, >= those stored
  float* dvalues;    // [capacity, height, width] written, 0 past the stored blocks
  float* dbias;      // [out_channels] written, or nullptr
  int threads;
};

void conv2d_blocks(const Conv2dBlocksArgs& args);
void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& args);
void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& args);

// The same by shifted streams, whatever the window; geometry: the forward's (see conv2d_geometry.h).
struct Conv2dGeometry;
template <typename Args>
struct Shifted : Args {
  const Conv2dGeometry* geometry;
};

SPFDE_PER_ISA(shifted_blocks, Shifted<Conv2dBlocksArgs>)
SPFDE_PER_ISA(shifted_blocks_input_grad, Shifted<Conv2dBlocksInputGradArgs>)
SPFDE_PER_ISA(shifted_blocks_weight_grad, Shifted<Conv2dBlocksWeightGradArgs>)

}  // namespace spfde
