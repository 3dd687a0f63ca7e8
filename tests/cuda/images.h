// Convolutions as the tests draw them: their shapes, and which pixels meet at a tap.
#pragma once

#include <cstdint>

#include "spfde/conv2d.h"

namespace test {

struct Convolution {
  int64_t batch, in, in_h, in_w, out, kernel_h, kernel_w, stride_h, stride_w, pad, dilation_h, dilation_w, groups;

  spfde::Conv2dShape shape() const {
    const auto length = [&](int64_t size, int64_t kernel, int64_t stride, int64_t dilation) {
      return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
    };
    return {batch,
            in,
            in_h,
            in_w,
            out,
            length(in_h, kernel_h, stride_h, dilation_h),
            length(in_w, kernel_w, stride_w, dilation_w),
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            pad,
            pad,
            dilation_h,
            dilation_w,
            groups};
  }
};

// f(image, output row, output column, input row, input column) wherever tap (i, j) meets a pixel.
template <typename F>
void for_each_meeting(const spfde::Conv2dShape& s, int64_t i, int64_t j, F f) {
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t h = 0; h < s.out_h; ++h)
      for (int64_t w = 0; w < s.out_w; ++w) {
        const int64_t in_h = h * s.stride_h - s.pad_top + i * s.dilation_h;
        const int64_t in_w = w * s.stride_w - s.pad_left + j * s.dilation_w;
        if (in_h >= 0 && in_h < s.in_h && in_w >= 0 && in_w < s.in_w) f(n, h, w, in_h, in_w);
      }
}

inline int64_t place(int64_t n, int64_t c, int64_t h, int64_t w, int64_t channels, int64_t height, int64_t width,
                     bool last) {
  return last ? ((n * height + h) * width + w) * channels + c : ((n * channels + c) * height + h) * width + w;
}

}  // namespace test
