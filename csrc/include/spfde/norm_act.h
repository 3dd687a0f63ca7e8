// y = act(batch_norm(x) [+ residual]) and its gradients: statistics, affine map, addition and activation together.
//
// Images are [batch, channels, pixels] planes, or with channels_last [batch, pixels, channels]; every image tensor of a
// call has the same layout. n = batch * pixels is the number of values of a channel. What belongs to a channel is
// float32 whatever the images are.
#pragma once

#include <cstdint>

#include "spfde/dtype.h"
#include "spfde/epilogue.h"

namespace spfde {

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
  double momentum;
  const float* weight;  // [channels] or nullptr (ones)
  const float* bias;    // [channels] or nullptr (zeros)
  const void* x;
  const void* residual;          // or nullptr
  float* mean;                   // [channels]
  float* var;                    // [channels], biased: divided by n
  float* running_mean;           // [channels] or nullptr: moves by momentum towards mean, with batch_statistics
  float* running_var;            // [channels] or nullptr: towards the variance divided by n - 1
  void* y;                       // every element written
  DType dtype = DType::float32;  // of x, residual and y
  // On a CPU, with batch_statistics: [channels, 2] mean and biased variance of x, which is then read once; or nullptr.
  const double* moments = nullptr;
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
  const void* x;
  const void* y;  // with a residual and an activation, else nullptr: what x tells is not stored again
  const void* dy;
  void* dx;                      // every element written
  void* dresidual;               // with y, and only then: dy where the activation let it pass
  float* dweight;                // [channels]
  float* dbias;                  // [channels]
  DType dtype = DType::float32;  // of x, y, dy, dx and dresidual
  // On a CPU: [5, channels] written instead of dx, mean, scale, bias, slope and offset of every channel, or nullptr:
  //   dx = scale * dz + slope * (x - mean) + offset, dz = dy where the activation of scale * (x - mean) + bias passed
  //   it
  float* numbers = nullptr;
};

}  // namespace spfde
