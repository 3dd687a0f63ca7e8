// The gradient of a norm's input as a source of lanes: computed while it is packed, never written to memory.
#pragma once

#include "conv2d_chunk.h"
#include "norm_terms.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

template <Activation A, bool kResidual, class Numbers>
struct NormGradientOf {
  Backward<A, kResidual> op;
  Numbers numbers;

  template <class T>
  T at(int64_t i, int64_t lane) const {
    return op.template gradient<T>(numbers, i, lane);
  }
};

template <Activation A, bool kResidual, bool kChannelsLast>
struct NormGradient {
  static constexpr bool kByChannel = true;
  Backward<A, kResidual> op;  // whose numbers are known

  auto of(int64_t c, bool) const {
    const int64_t channels = op.a.shape.channels;
    if constexpr (kChannelsLast) {
      return NormGradientOf<A, kResidual, PerLane>{op, {op.a.numbers + c, channels}};
    } else {
      Shared m = {};
      for (int k = 0; k < kNumbers; ++k) m.numbers[k] = op.a.numbers[k * channels + c];
      return NormGradientOf<A, kResidual, Shared>{op, m};
    }
  }
};

template <Activation A, bool kResidual>
void pack_gradient_as(const Conv2dGeometry& g, const Layout& l, const NormActGradArgs& a, int64_t first, int64_t images,
                      float* packed) {
  const Backward<A, kResidual> op = {a, 0.};
  if (a.shape.channels_last)
    pack_lanes(g, l, NormGradient<A, kResidual, true>{op}, true, first, images, 0, g.source_channels, packed);
  else
    pack_lanes(g, l, NormGradient<A, kResidual, false>{op}, false, first, images, 0, g.source_channels, packed);
}

template <bool kResidual>
void pack_gradient_of(const Conv2dGeometry& g, const Layout& l, const NormActGradArgs& a, int64_t first, int64_t images,
                      float* packed) {
  switch (a.act) {
    case Activation::none:
      return pack_gradient_as<Activation::none, kResidual>(g, l, a, first, images, packed);
    case Activation::relu:
      return pack_gradient_as<Activation::relu, kResidual>(g, l, a, first, images, packed);
    case Activation::relu6:
      return pack_gradient_as<Activation::relu6, kResidual>(g, l, a, first, images, packed);
  }
}

// All channels of a.dx, which is not read.
inline void pack_gradient(const Conv2dGeometry& g, const Layout& l, const NormActGradArgs& a, int64_t first,
                          int64_t images, float* packed) {
  a.y ? pack_gradient_of<true>(g, l, a, first, images, packed)
      : pack_gradient_of<false>(g, l, a, first, images, packed);
}

}  // namespace
}  // namespace spfde::cpu::SPFDE_ISA
