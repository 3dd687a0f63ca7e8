// Where activations lie, and what a column of a weight reads of them.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace spfde::cuda {

// Tokens are the pixels of images, counted image by image, row by row; a row of [batch, features] is an image of one
// pixel. Feature f of a token lies f * of_feature behind its place.
struct Grid {
  int height, width;
  int64_t of_image, of_row, of_pixel, of_feature;

  __device__ __forceinline__ int64_t place(int token) const {
    if (height * width == 1) return token * of_image;
    const int pixel = token % (height * width);
    return token / (height * width) * of_image + pixel / width * of_row + pixel % width * of_pixel;
  }
};

// A linear layer's: column c reads feature c of the token itself.
template <typename T>
struct Features {
  const T* x;
  Grid grid;
  int64_t columns;

  using Pixel = int64_t;
  using Column = int64_t;
  __device__ __forceinline__ Pixel pixel(int token) const { return grid.place(token); }
  __device__ __forceinline__ Column column(int64_t number) const { return number * grid.of_feature; }
  __device__ __forceinline__ T load(Pixel pixel, Column column) const { return x[pixel + column]; }
};

// A convolution's: column (c, i, j) reads channel c of the image at row h * step + first + (tap_first + i * tap_step) /
// tap_divisor, and at such a column, h being the token's row; zero outside. Forward: (0 + i * dilation) / 1. Input
// gradient: see conv2d.cu.
struct Axis {
  int size;  // of the image that is read
  int kernel;
  int step, first;
  int tap_first, tap_step, tap_divisor;

  __device__ __forceinline__ int tap(int number) const { return (tap_first + number * tap_step) / tap_divisor; }
};

template <typename T>
struct Taps {
  const T* x;
  Grid grid;  // of the tokens; its offsets are those of the image that is read
  Axis h, w;
  int64_t columns;

  struct Pixel {
    int image;
    int at;  // row and column in 16 bits each: a thread keeps four of these in registers
  };
  struct Column {
    int64_t channel;
    int h, w;
  };
  __device__ __forceinline__ Pixel pixel(int token) const {
    const int pixel = token % (grid.height * grid.width);
    const int row = pixel / grid.width * h.step + h.first, column = pixel % grid.width * w.step + w.first;
    return {token / (grid.height * grid.width), (row << 16) | (column & 0xffff)};
  }
  __device__ __forceinline__ Column column(int64_t number) const {
    const int taps = h.kernel * w.kernel, tap = static_cast<int>(number % taps);
    return {number / taps * grid.of_feature, h.tap(tap / w.kernel), w.tap(tap % w.kernel)};
  }
  __device__ __forceinline__ T load(const Pixel& pixel, const Column& column) const {
    const int row = (pixel.at >> 16) + column.h, at = static_cast<int16_t>(pixel.at) + column.w;
    if (row < 0 || row >= h.size || at < 0 || at >= w.size) return from_float<T>(0.0f);
    return x[pixel.image * grid.of_image + column.channel + row * grid.of_row + at * grid.of_pixel];
  }
};

}  // namespace spfde::cuda
