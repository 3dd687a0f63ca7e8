// What an activation does, and what its gradient lets pass.
#pragma once

#include <limits>

#include "cuda/device.h"
#include "spfde/epilogue.h"

namespace spfde::cuda {

// Values below low become low, those above high become high. A bound that is no number bounds nothing, and what is no
// number stays so.
struct Bounds {
  float low, high;

  explicit Bounds(Activation act) {
    constexpr float none = std::numeric_limits<float>::quiet_NaN();
    low = act == Activation::none ? none : 0.0f;
    high = act == Activation::relu6 ? 6.0f : none;
  }
  __device__ __forceinline__ float apply(float z) const {
    z = z < low ? low : z;
    return z > high ? high : z;
  }
  // dy where the activation of z, or equally of act(z), has slope 1.
  __device__ __forceinline__ float gate(float z, float dy) const { return z <= low || z >= high ? 0.0f : dy; }
};

}  // namespace spfde::cuda
