// What follows a product before it is written: y = act(scale * product + shift + residual). On CUDA.
#pragma once

namespace spfde {

enum class Activation { none, relu, relu6 };

// scale, shift: float32 whatever the product is.
struct Epilogue {
  const float* scale = nullptr;    // [rows] or nullptr (ones)
  const float* shift = nullptr;    // [rows] or nullptr (zeros)
  const void* residual = nullptr;  // like y, or nullptr
  Activation act = Activation::none;
};

}  // namespace spfde
