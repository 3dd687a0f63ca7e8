// Where the pixels of a convolution by blocks lie, and what a column of blocks reads of them: a View as block_places.h
// tells of, of images in channels_last memory.
//
// Columns are channel block x taps + tap. Tokens are the pixels of Y; those of DX (kTransposed) of one residue modulo
// the stride, which meet the same taps. Its groups of rows come by residue, then by the convolution's group.
#pragma once

#include <cstdint>

#include "cuda/block_places.h"

namespace spfde::cuda::blocks {

// n / divisor for every n in [0, 2^31), by a multiplication: a GPU has no instruction that divides.
struct Divisor {
  uint32_t factor;
  int shift = 31;

  explicit Divisor(int64_t divisor) {
    while (int64_t{1} << (shift - 31) < divisor) ++shift;
    factor = static_cast<uint32_t>(((int64_t{1} << shift) - 1) / divisor + 1);
  }
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>(uint64_t{static_cast<uint32_t>(n)} * factor >> shift);
  }
};

// The rows, or the columns, of the images that are read and written.
template <bool kTransposed>
struct Side {
  int source, result;  // how many
  int stride, pad, dilation;
  Divisor by_stride;

  // Of the pixels that are written, those number `first`, `first` + stride, ... The first of them reads from `from` on.
  struct Residue {
    int number, first, from;
  };
  __device__ __forceinline__ Residue residue(int number) const {
    if (!kTransposed) return {0, 0, -pad};
    const int first = ((number - pad) % stride + stride) % stride;
    return {number, first, (first + pad - number) / stride};
  }
  // Where the pixel `number` of a residue reads by a tap of no move, and where it lies itself.
  __device__ __forceinline__ int read(int number, const Residue& of) const {
    return of.from + (kTransposed ? number : number * stride);
  }
  __device__ __forceinline__ int written(int number, const Residue& of) const {
    return kTransposed ? of.first + number * stride : number;
  }
  // How much further a tap reads, of those that the residue meets.
  __device__ __forceinline__ int move(int tap, const Residue& of) const {
    return kTransposed ? -by_stride.quotient(tap * dilation - of.number) : tap * dilation;
  }
};

template <typename T, bool kTransposed>
struct Pixels {
  const T* x;  // [batch, h.source, w.source, inner]
  T* y;        // [batch, h.result, w.result, outer]
  Side<kTransposed> h, w;
  int tokens, area, line;  // pixels of a residue: all, of an image, of a row of it
  Divisor by_area, by_line;
  int inner, outer, group_inner, group_outer;  // channels; group_inner of what a group of rows reads
  int groups, row_groups;  // of the convolution; transposed: groups of rows for each of them and each residue
  int width;               // channels of a block that are read
  int taps, kernel_w;
  Divisor by_taps, by_kernel_w;

  struct View {
    const Pixels& of;
    int output, channel;  // channel: the first that is read
    typename Side<kTransposed>::Residue h, w;

    struct Row {
      const T* at;
      int place;  // row and column in 16 bits each: a thread keeps four of these in registers
    };
    struct Column {
      int64_t move;
      int h, w, count;
    };
    struct Pixel {
      int image, i, j;
    };
    static constexpr int kFar = -(1 << 15);  // above every image, whatever the tap

    __device__ __forceinline__ Pixel pixel(int token) const {
      const int image = of.by_area.quotient(token), place = token - image * of.area, i = of.by_line.quotient(place);
      return {image, i, place - i * of.line};
    }
    __device__ __forceinline__ Row row(int token) const {
      const Pixel p = pixel(token);
      const int i = of.h.read(p.i, h), j = of.w.read(p.j, w);
      return {of.x + ((int64_t{p.image} * of.h.source + i) * of.w.source + j) * of.inner,
              (token < of.tokens ? i : kFar) << 16 | (j & 0xffff)};
    }
    __device__ __forceinline__ Column column(int number, int inside) const {
      const int block = of.by_taps.quotient(number), tap = number - block * of.taps;
      const int row = of.by_kernel_w.quotient(tap), in_group = block * of.width + inside;
      const int i = of.h.move(row, h), j = of.w.move(tap - row * of.kernel_w, w);
      return {(int64_t{i} * of.w.source + j) * of.inner + channel + in_group, i, j,
              max(0, min(of.group_inner - in_group, kPiece<T>))};
    }
    __device__ __forceinline__ Piece<T> piece(const Row& row, const Column& column) const {
      const int i = (row.place >> 16) + column.h, j = static_cast<int16_t>(row.place) + column.w;
      const bool there = static_cast<unsigned>(i) < static_cast<unsigned>(of.h.source) &&
                         static_cast<unsigned>(j) < static_cast<unsigned>(of.w.source);
      return {row.at + column.move, there ? column.count : 0};
    }
    __device__ __forceinline__ int past(int outer) const {
      return kTransposed ? (output / of.group_outer + 1) * of.group_outer : outer;
    }
    __device__ __forceinline__ T* result(int token) const {
      const Pixel p = pixel(token);
      const int i = of.h.written(p.i, h), j = of.w.written(p.j, w);
      if (token >= of.tokens || i >= of.h.result || j >= of.w.result) return nullptr;
      return of.y + ((int64_t{p.image} * of.h.result + i) * of.w.result + j) * of.outer;
    }
  };
  __device__ __forceinline__ View view(int group, int outputs) const {
    if (!kTransposed) {
      const int output = group * outputs;
      return {*this, output, output / group_outer * group_inner, h.residue(0), w.residue(0)};
    }
    const int part = group / row_groups, residue = part / groups;
    const int output = part % groups * group_outer + group % row_groups * outputs;
    return {*this, output, 0, h.residue(residue / w.stride), w.residue(residue % w.stride)};
  }
};

}  // namespace spfde::cuda::blocks
