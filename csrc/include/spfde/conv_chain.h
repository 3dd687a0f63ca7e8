// Sparse convolutions one behind the other, each with what follows it, in inference:
//
//   target = act(conv(source) + bias [+ residual])
//
// Values are numbered activations [batch, channels, height, width], contiguous or (by their flag) channels_last where
// they lie in memory. An input comes from memory; every other value is made by one step, which comes before those that
// read it, and goes to memory if it has an output.
#pragma once

#include <cstdint>

#include "spfde/dtype.h"
#include "spfde/norm_act.h"

namespace spfde {

struct ChainValue {
  int64_t channels, height, width;
  const void* input;  // or nullptr
  void* output;       // or nullptr; every element written
  bool channels_last;
};

struct ChainStep {
  int64_t source, target, residual;  // values; residual is shaped like target, -1 for none
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // bottom and right padding follow from the target
  int64_t dilation_h, dilation_w;
  int64_t groups;
  const int32_t* row_ptr;  // [channels of target + 1]
  const int32_t* col;      // [nnz] ascending within a row, as in conv2d.h
  const void* values;      // [nnz]
  const void* bias;        // [channels of target] or nullptr
  Activation act;
};

struct ConvChainArgs {
  int64_t batch;
  const ChainValue* values;
  int64_t value_count;
  const ChainStep* steps;
  int64_t step_count;
  DType dtype = DType::float32;  // of all arrays but the index
};

}  // namespace spfde
