// y = act(batch_norm(x) [+ residual]) and its gradients: statistics, affine map, addition and activation together.
//
// Images are [batch, channels, pixels] planes, or with channels_last [batch, pixels, channels]; every image tensor of a
// call has the same layout. n = batch * pixels is the number of values of a channel.
#pragma once

#include <cstdint>

#include "spfde/isa.h"

namespace spfde {

enum class Activation { none, relu, relu6 };

struct NormShape {
  int64_t batch;
  int64_t channels;
  int64_t pixels;
  bool channels_last;
};

struct NormActArgs {
  NormShape shape;  // n >= 1, n >= 2 with batch_statistics
  Activation act;
  bool batch_statistics;  // mean and var are computed here, else given
  double eps;
  const float* weight;  // [channels] or nullptr (ones)
  const float* bias;    // [channels] or nullptr (zeros)
  const float* x;
  const float* residual;  // or nullptr
  float* mean;            // [channels]
  float* var;             // [channels], biased: divided by n
  float* running_mean;    // [channels] or nullptr: moves by momentum towards mean, with batch_statistics
  float* running_var;     // [channels] or nullptr: towards the variance divided by n - 1
  double momentum;
  float* y;     // every element written
  int threads;  // >= 1
};

struct NormActGradArgs {
  NormShape shape;
  Activation act;
  bool batch_statistics;  // mean and var depend on x, else they are constants
  double eps;
  const float* weight;
  const float* bias;
  const float* mean;
  const float* var;
  const float* x;
  const float* y;  // with a residual and an activation, else nullptr: what x tells is not stored again
  const float* dy;
  float* dx;         // every element written
  float* dresidual;  // with y, and only then: dy where the activation let it pass
  float* dweight;    // [channels]
  float* dbias;      // [channels]
  int threads;
};

SPFDE_PER_ISA(norm_act, NormActArgs)
SPFDE_PER_ISA(norm_act_grad, NormActGradArgs)

}  // namespace spfde
