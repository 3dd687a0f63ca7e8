// What the convolutions check of a shape, and how messages name it.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "spfde/conv2d.h"

namespace spfde::cuda {

// Rows and columns are counted in 16 bits, padding and dilated taps included.
inline void check(const Conv2dShape& s, const std::string& problem) {
  const int64_t most = std::max({s.in_h + s.pad_top, s.in_w + s.pad_left, s.out_h * s.stride_h, s.out_w * s.stride_w,
                                 (s.kernel_h - 1) * s.dilation_h, (s.kernel_w - 1) * s.dilation_w});
  if (most >= 1 << 15)
    throw std::invalid_argument("expected images of fewer than 32768 rows and columns, got " + problem +
                                "; try smaller ones, or layer.kernel = 'dense'");
}

inline std::string named(const char* op, const Conv2dShape& s) {
  return std::string(op) + " [" + std::to_string(s.batch) + ", " + std::to_string(s.in_channels) + ", " +
         std::to_string(s.in_h) + ", " + std::to_string(s.in_w) + "] to " + std::to_string(s.out_channels) +
         " channels";
}

}  // namespace spfde::cuda
