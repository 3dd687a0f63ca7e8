// How a convolution becomes shifted streams.
//
// Source activations are copied into zero-padded planes, one per channel and stride phase; target activations live in
// rows of the same grid. A stored weight then adds (or correlates) its plane at one constant offset, whatever the
// stride, padding and dilation. Padding is shared: a row's right padding is the next row's left padding. How the images
// of a batch share the planes is the kernel's affair (kernels/planes.h).
#pragma once

#include <cstdint>
#include <memory>

#include "spfde/conv2d.h"
#include "spfde/norm_act.h"

namespace spfde::cpu {

// One spatial axis. Element u of source phase p is source index u * source_step + source_first[p]; likewise for the
// target. Tap t pairs target element m of phase target_phase[t] with source element m + shift[t] of source_phase[t].
struct Axis {
  int64_t source_length, source_step, source_phases;
  int64_t target_length, target_step, target_phases;
  int64_t taps;
  int64_t grid;   // target elements per phase, the most of any phase
  int64_t pitch;  // elements between consecutive rows (or images)
  int64_t max_shift;
  const int64_t* source_first;          // [source_phases]
  const int64_t* target_first;          // [target_phases]
  const int64_t *source_phase, *shift;  // [taps]
};

struct Conv2dGeometry {
  Axis h, w;
  int64_t batch, groups;
  int64_t source_channels, target_channels;
  int64_t planes;        // per source channel
  const int64_t* plane;  // [h.source_phases * w.source_phases] which of them, -1 where no tap reads the phase
};

// Throws std::length_error: planes of so many positions do not fit the 32-bit offsets of a kernel.
[[noreturn]] void refuse_planes(int64_t positions);

// What of a convolution depends on its shape alone.
class Conv2dPlan {
 public:
  explicit Conv2dPlan(const Conv2dShape& shape);

  const Conv2dShape& shape() const { return shape_; }
  const Conv2dGeometry& forward() const { return *forward_; }        // source x, target y; also the weight gradient's
  const Conv2dGeometry& input_grad() const { return *input_grad_; }  // source dy, target dx

 private:
  Conv2dShape shape_;
  std::shared_ptr<const Conv2dGeometry> forward_, input_grad_;
};

// target = sum over stored weights of w * shifted source, plus bias: forward, and the input gradient.
struct ShiftedProductArgs {
  const Conv2dGeometry& geometry;
  const int32_t* row_ptr;  // [target_channels * target phases + 1]
  const int32_t* col;
  const float* values;
  const float* bias;  // [target_channels] or nullptr
  const float* source;
  float* target;
  bool source_channels_last, target_channels_last;
  double* moments = nullptr;  // [target_channels, 2] mean and biased variance of the target, where `takes_moments`
};

// dvalues = <target, shifted source> per stored weight, dbias = sum of target: the weight gradient.
struct ShiftedCorrelationArgs {
  const Conv2dGeometry& geometry;
  const int32_t* row_ptr;  // [target_channels + 1]
  const int32_t* col;
  const float* source;
  const float* target;
  bool source_channels_last, target_channels_last;
  int64_t capacity;
  float* dvalues;  // [capacity]
  float* dbias;    // [target_channels] or nullptr
};

// Both gradients; the source of the first is the target of the second.
struct ShiftedGradientsArgs {
  ShiftedProductArgs input;
  ShiftedCorrelationArgs weight;
  const NormActGradArgs* norm = nullptr;  // its dx, by its numbers, is read instead, where `gradients_take_norm`
};

}  // namespace spfde::cpu
