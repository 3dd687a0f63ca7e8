// The product of a W in blocks with what its columns read of tokens: forward and input gradient of every layer.
//
// A block of threads computes one item of work of the tiles (spfde/tiles.h), kOutputs rows, for kTokens tokens. Of the
// inputs that the item's entries read, one entry behind the other, kDepth at a time are summed on the tensor cores:
// narrow blocks are multiplied several at once, wide ones part by part. Tokens are the rows of the instruction. The
// factors are copied asynchronously, kStages - 1 steps ahead.
#pragma once

#include "cuda/block_places.h"
#include "cuda/mma.h"

namespace spfde::cuda::blocks {

constexpr int kTokens = 128;
constexpr int kStages = 3;
constexpr int kTokenWarps = 4;  // side by side along the tokens
constexpr int kWarpTokens = kTokens / kTokenWarps;
constexpr int kPieces = 4;  // in kDepth

template <typename T>
constexpr int kDepth = kPieces * kPiece<T>;

// The shared memory of a launch with kOutputs rows. Strides are such that eight rows of 16 bytes meet no bank twice.
template <typename T, int kOutputs, bool kTransposed>
struct Layout {
  static constexpr int kWarpOutputs = kOutputs < 64 ? kOutputs : 64;
  static constexpr int kThreads = kOutputs / kWarpOutputs * kTokenWarps * kWarp;
  static constexpr int kResident = 3 * 128 / kThreads;  // blocks of threads that registers are left for
  static constexpr int kSourceStride = kDepth<T> + kPiece<T>;
  static constexpr int kBlockRows = kTransposed ? kDepth<T> : kOutputs;
  static constexpr int kBlockStride = kTransposed ? kOutputs + 8 : kSourceStride;

  struct Stage {
    alignas(16) T source[kTokens * kSourceStride];   // [tokens, inputs]
    alignas(16) T block[kBlockRows * kBlockStride];  // [outputs, inputs], transposed [inputs, outputs]
  };
};

// W, as tiles for the direction of the product, in which a block has 2^out_bits outputs and 2^in_bits inputs.
template <typename T>
struct Weight {
  const T* values;
  const T* bias;  // [outer] or nullptr
  const int32_t* entry;
  const int32_t* work;
  int items, together, out_bits, in_bits;

  // Fields of entry `number`: column, group, slot of each row.
  __device__ __forceinline__ const int32_t* fields(int number) const {
    return entry + int64_t{number} * (2 + together);
  }
  // Where the weight lies for output `out` and input `in` of the block in a slot.
  template <bool kTransposed>
  __device__ __forceinline__ const T* at(int slot, int out, int in) const {
    const T* block = values + (int64_t{max(slot, 0)} << (out_bits + in_bits));
    return block + (kTransposed ? (in << out_bits) + out : (out << in_bits) + in);
  }
};

// Where results go: to Y, or as sums of an item that is a part of its group to scratch memory [places, tokens,
// outputs].
struct Target {
  float* scratch;
  int tokens, outer;
  bool pairs;    // two neighbouring outputs of Y are aligned to their size
  bool vectors;  // a piece of X and of W is
};

// `count` elements from `from` and zeros, kPiece of them: asynchronously where they are aligned, else now.
template <typename T>
__device__ __forceinline__ void copy_piece(T* to, const T* from, int count, bool vectors) {
  if (vectors) {
    copy_async(to, from, count > 0);
  } else {
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) to[i] = i < count ? from[i] : from_float<T>(0.0f);
  }
}

// Starts the copies of a step: its inputs are step * kDepth on of the item's, those of entries [first, last).
template <typename T, int kOutputs, bool kTransposed, typename View, int kRows>
__device__ __forceinline__ void copy_step(const Weight<T>& weight, const View& view,
                                          const typename View::Row (&rows)[kRows], int first, int last, int step,
                                          bool vectors, typename Layout<T, kOutputs, kTransposed>::Stage& stage) {
  using S = Layout<T, kOutputs, kTransposed>;
  const int at = threadIdx.x / kPieces, piece = threadIdx.x % kPieces * kPiece<T>;
  const int input = step * kDepth<T> + piece, number = first + (input >> weight.in_bits);
  const int inside = input & ((1 << weight.in_bits) - 1);
  const bool there = number < last;
  const int32_t* fields = weight.fields(there ? number : first);
  const auto column = view.column(fields[0], inside);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Piece<T> from = view.piece(rows[i], column);
    T* to = stage.source + (at + i * (S::kThreads / kPieces)) * S::kSourceStride + piece;
    copy_piece(to, from.at, there ? from.count : 0, vectors);
  }
  if constexpr (kTransposed) {
    constexpr int kAcross = kOutputs / kPiece<T>;
    for (int i = threadIdx.x; i < kDepth<T> * kAcross; i += S::kThreads) {
      const int k = i / kAcross, n = i % kAcross * kPiece<T>, of = step * kDepth<T> + k;
      const int from = first + (of >> weight.in_bits);
      const int slot = from < last ? weight.fields(from)[2 + (n >> weight.out_bits)] : -1;
      copy_piece(stage.block + k * S::kBlockStride + n,
                 weight.template at<true>(slot, n & ((1 << weight.out_bits) - 1), of & ((1 << weight.in_bits) - 1)),
                 slot < 0 ? 0 : kPiece<T>, vectors);
    }
  } else {
    for (int n = at; n < kOutputs; n += S::kThreads / kPieces) {
      const int slot = there ? fields[2 + (n >> weight.out_bits)] : -1;
      copy_piece(stage.block + n * S::kBlockStride + piece,
                 weight.template at<false>(slot, n & ((1 << weight.out_bits) - 1), inside), slot < 0 ? 0 : kPiece<T>,
                 vectors);
    }
  }
}

// The fragments of a column-major B [kStep, 16], as two of eight columns, out of rows of inputs [inputs, stride].
template <typename T>
__device__ __forceinline__ void load_across(const T* rows, int stride, uint32_t (&words)[4]) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (std::is_same_v<T, float>) {  // elements of 32 bits cannot be transposed on the way
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = as_word(rows[(lane % 4 + i % 2 * 4) * stride + lane / 4 + i / 2 * 8]);
  } else {
    load_matrices<true>(rows + (lane % 8 + lane / 8 % 2 * 8) * stride + lane / 16 * 8, words);
  }
}

// Adds a step's product to the sums of this warp, kWarpTokens by kWarpOutputs in fragments of 16 by 8.
template <typename T, bool kExact, int kOutputs, bool kTransposed>
__device__ __forceinline__ void multiply_step(
    const typename Layout<T, kOutputs, kTransposed>::Stage& stage, int first_token, int first_output,
    float (&sum)[kWarpTokens / 16][Layout<T, kOutputs, kTransposed>::kWarpOutputs / 8][4]) {
  using S = Layout<T, kOutputs, kTransposed>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kDepth<T>; k += kStep<T>) {
    uint32_t a[kWarpTokens / 16][4];
#pragma unroll
    for (int m = 0; m < kWarpTokens / 16; ++m)
      load_matrices<false>(
          stage.source + (first_token + m * 16 + lane % 16) * S::kSourceStride + k + lane / 16 * kPiece<T>, a[m]);
#pragma unroll
    for (int n = 0; n < S::kWarpOutputs; n += 16) {
      uint32_t b[4];
      if constexpr (kTransposed)
        load_across(stage.block + k * S::kBlockStride + first_output + n, S::kBlockStride, b);
      else
        load_matrices<false>(stage.block + (first_output + n + lane % 8 + lane / 16 * 8) * S::kBlockStride + k +
                                 lane / 8 % 2 * kPiece<T>,
                             b);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < kWarpTokens / 16; ++m) {
        multiply_add<T, kExact>(sum[m][n / 8], a[m], left);
        multiply_add<T, kExact>(sum[m][n / 8 + 1], a[m], right);
      }
    }
  }
}

// Two neighbouring outputs of a token, of which `left` are there.
template <typename T>
__device__ __forceinline__ void store_pair(T* y, float first, float second, int left, bool pairs) {
  if (left > 1 && pairs) {
    *reinterpret_cast<Two<T>*>(y) = {{from_float<T>(first), from_float<T>(second)}};
  } else {
    if (left > 0) y[0] = from_float<T>(first);
    if (left > 1) y[1] = from_float<T>(second);
  }
}

// Blocks: items of work, fastest, so that those that run at the same time read the same tokens, by tiles of tokens.
template <typename T, bool kExact, int kOutputs, bool kTransposed, typename Places>
__device__ __forceinline__ void product(const Weight<T>& weight, const Places& places, const Target& target) {
  using S = Layout<T, kOutputs, kTransposed>;
  auto* stages = reinterpret_cast<typename S::Stage*>(shared_memory());
  const int32_t* item = weight.work + int64_t{blockIdx.x % weight.items} * 4;
  const int group = item[0], first = item[1], last = item[2], part = item[3];
  if (group < 0) return;
  const int first_token = blockIdx.x / weight.items * kTokens;
  const auto view = places.view(group, kOutputs);

  constexpr int kRows = kTokens * kPieces / S::kThreads;
  typename Places::View::Row rows[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) rows[i] = view.row(first_token + threadIdx.x / kPieces + i * (S::kThreads / kPieces));
  const int steps = (((last - first) << weight.in_bits) + kDepth<T> - 1) / kDepth<T>;
  const auto copy = [&](int step) {
    if (step < steps)
      copy_step<T, kOutputs, kTransposed>(weight, view, rows, first, last, step, target.vectors,
                                          stages[step % kStages]);
    copies_commit();
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_token = warp % kTokenWarps * kWarpTokens, warp_output = warp / kTokenWarps * S::kWarpOutputs;
  float sum[kWarpTokens / 16][S::kWarpOutputs / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();  // all copies of this step have landed, and all have read the step before it
    copy(step + kStages - 1);
    multiply_step<T, kExact, kOutputs, kTransposed>(stages[step % kStages], warp_token, warp_output, sum);
  }

#pragma unroll
  for (int m = 0; m < kWarpTokens / 16 * 2; ++m) {
    const int token = first_token + warp_token + m * 8 + lane / 4;
    T* y = view.result(token);
    if (!y) continue;
    float* partial = part < 0 ? nullptr : target.scratch + (int64_t{part} * target.tokens + token) * kOutputs;
#pragma unroll
    for (int n = 0; n < S::kWarpOutputs / 8; ++n) {
      const int of_group = warp_output + n * 8 + lane % 4 * 2, output = view.output + of_group;
      float values[2] = {sum[m / 2][n][m % 2 * 2], sum[m / 2][n][m % 2 * 2 + 1]};
      if (partial) {
        *reinterpret_cast<Two<float>*>(partial + of_group) = {{values[0], values[1]}};
        continue;
      }
      const int left = view.past(target.outer) - output;
      if (weight.bias)
        for (int i = 0; i < 2; ++i)
          if (i < left) values[i] += to_float(weight.bias[output + i]);
      store_pair(y + output, values[0], values[1], left, target.pairs);
    }
  }
}

}  // namespace spfde::cuda::blocks
