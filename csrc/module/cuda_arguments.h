// Arguments of the CUDA kernels, as they come from Python.
#pragma once

#include <array>
#include <string>

#include "spfde/conv2d.h"
#include "spfde/dtype.h"

inline spfde::DType dtype_of(const std::string& name) {
  return name == "float32" ? spfde::DType::float32 : name == "float16" ? spfde::DType::float16 : spfde::DType::bfloat16;
}

// The numbers of a Conv2dShape, in its order.
using Numbers = std::array<int64_t, 16>;

inline spfde::Conv2dShape shape_of(const Numbers& n) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15]};
}
