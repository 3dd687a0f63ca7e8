// Where the tokens of a product by blocks lie, and what a column of blocks reads of them.
//
// A product asks for a View of the group of rows that it computes: row(token) is what the token reads, column(c,
// inside) the `inside`th input of block column c on, piece(row, column) their address and how many elements are there,
// result (token) where its outputs go, the first of which is `output`.
#pragma once

#include <cstdint>

#include "cuda/mma.h"

namespace spfde::cuda::blocks {

template <typename T>
struct Piece {
  const T* at;
  int count;  // elements of kPiece<T> that are there; the others are zero
};

// A linear layer: tokens are rows of X [tokens, inner] and Y [tokens, outer].
template <typename T>
struct Rows {
  const T* x;
  T* y;
  int tokens, inner, outer, width;  // width: inputs of a block

  struct View {
    const Rows& of;
    int output;

    struct Row {
      const T* at;
      bool there;
    };
    struct Column {
      int feature, count;
    };
    __device__ __forceinline__ Row row(int token) const {
      return {of.x + int64_t{min(token, of.tokens - 1)} * of.inner, token < of.tokens};
    }
    __device__ __forceinline__ Column column(int number, int inside) const {
      const int feature = number * of.width + inside;
      return {feature, max(0, min(of.inner - feature, kPiece<T>))};
    }
    __device__ __forceinline__ Piece<T> piece(const Row& row, const Column& column) const {
      return {row.at + column.feature, row.there ? column.count : 0};
    }
    __device__ __forceinline__ int past(int outer) const { return outer; }
    __device__ __forceinline__ T* result(int token) const {
      return token < of.tokens ? of.y + int64_t{token} * of.outer : nullptr;
    }
  };
  __device__ __forceinline__ View view(int group, int outputs) const { return {*this, group * outputs}; }
};

}  // namespace spfde::cuda::blocks
