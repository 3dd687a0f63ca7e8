// The product of dY, transposed, with what the columns of W read, at the stored blocks of W only: weight gradients.
//
// A block of threads computes one chunk of the tiles (spfde/tiles.h): kOutputs rows of W by the kInputs columns of
// blocks that stand side by side, kDepth tokens at a time on the tensor cores. Tokens may be cut into parts, whose sums
// are added in their order. The first chunk of a group also sums dY for the bias gradient.
#pragma once

#include "cuda/block_places.h"
#include "cuda/block_product.h"
#include "cuda/mma.h"

namespace spfde::cuda::blocks {

constexpr int kInputs = 128;    // STACKED in spfde/sparse/tiles.py
constexpr int kInputWarps = 4;  // side by side along the inputs
constexpr int kWarpInputs = kInputs / kInputWarps;

template <typename T, int kOutputs>
struct SampleLayout {
  static constexpr int kWarpOutputs = kOutputs < 64 ? kOutputs : 64;
  static constexpr int kThreads = kOutputs / kWarpOutputs * kInputWarps * kWarp;
  static constexpr int kResident = 3 * 128 / kThreads;
  static constexpr int kStride = kOutputs + 8, kSourceStride = kInputs + 8;

  struct Stage {
    alignas(16) T dy[kDepth<T> * kStride];            // [tokens, outputs]
    alignas(16) T source[kDepth<T> * kSourceStride];  // [tokens, inputs]
  };
};

// Where the sums go: to `sums` [parts, capacity * block + rows] where there are parts, else to dvalues and dbias.
template <typename T>
struct Gradient {
  T* dvalues;
  T* dbias;  // or nullptr
  float* sums;
  const int32_t* unit_count;  // stored blocks times their width
  int64_t size;               // of dvalues, in elements
  int rows, height_bits, width_bits;
};

// The fragments of a row-major A [16, kStep] out of rows of tokens [tokens, stride].
template <typename T>
__device__ __forceinline__ void load_down(const T* rows, int stride, uint32_t (&words)[4]) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = as_word(rows[(lane % 4 + i / 2 * 4) * stride + lane / 4 + i % 2 * 8]);
  } else {
    load_matrices<true>(rows + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8, words);
  }
}

// Adds a step's product to the sums of this warp, kWarpOutputs by kWarpInputs in fragments of 16 by 8.
template <typename T, bool kExact, int kOutputs>
__device__ __forceinline__ void sample_step(
    const typename SampleLayout<T, kOutputs>::Stage& stage, int first_output, int first_input,
    float (&sum)[SampleLayout<T, kOutputs>::kWarpOutputs / 16][kWarpInputs / 8][4]) {
  using S = SampleLayout<T, kOutputs>;
#pragma unroll
  for (int k = 0; k < kDepth<T>; k += kStep<T>) {
    uint32_t b[kWarpInputs / 16][4];
#pragma unroll
    for (int n = 0; n < kWarpInputs / 16; ++n)
      load_across(stage.source + k * S::kSourceStride + first_input + n * 16, S::kSourceStride, b[n]);
#pragma unroll
    for (int m = 0; m < S::kWarpOutputs / 16; ++m) {
      uint32_t a[4];
      load_down(stage.dy + k * S::kStride + first_output + m * 16, S::kStride, a);
#pragma unroll
      for (int n = 0; n < kWarpInputs / 16; ++n) {
        const uint32_t left[2] = {b[n][0], b[n][1]}, right[2] = {b[n][2], b[n][3]};
        multiply_add<T, kExact>(sum[m][2 * n], a, left);
        multiply_add<T, kExact>(sum[m][2 * n + 1], a, right);
      }
    }
  }
}

// Blocks: chunks, parts. dy: [tokens, rows]. vectors: pieces of dy and of what is read are aligned.
template <typename T, bool kExact, int kOutputs, typename Places>
__device__ __forceinline__ void sample(const T* dy, const int32_t* entries, int together, const Places& places,
                                       int tokens, bool vectors, const Gradient<T>& to) {
  using S = SampleLayout<T, kOutputs>;
  auto* stages = reinterpret_cast<typename S::Stage*>(shared_memory());
  const int fields = 2 + together, stack = kInputs >> to.width_bits;
  const int32_t* chunk = entries + int64_t{blockIdx.x} * stack * fields;
  const int group = chunk[1];
  if (group < 0) return;
  const bool sums_bias = to.dbias && (blockIdx.x == 0 || chunk[1 - stack * fields] != group);

  // A thread copies the same inputs of every token.
  constexpr int kAcross = kInputs / kPiece<T>, kTokensOfThread = kDepth<T> * kAcross / S::kThreads;
  const int input = threadIdx.x % kAcross * kPiece<T>, at = threadIdx.x / kAcross;
  const auto view = places.view(group, kOutputs);
  const auto column = view.column(chunk[(input >> to.width_bits) * fields], input & ((1 << to.width_bits) - 1));
  const int all_steps = (tokens + kDepth<T> - 1) / kDepth<T>, parts = gridDim.y, part = blockIdx.y;
  const int first_step = static_cast<int>(int64_t{all_steps} * part / parts);
  const int steps = static_cast<int>(int64_t{all_steps} * (part + 1) / parts) - first_step;
  const auto copy = [&](int step) {
    typename S::Stage& stage = stages[step % kStages];
    const int first = (first_step + step) * kDepth<T>;
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < kTokensOfThread; ++i) {
        const int k = at + i * (S::kThreads / kAcross);
        const Piece<T> from = view.piece(view.row(first + k), column);
        copy_piece(stage.source + k * S::kSourceStride + input, from.at, from.count, vectors);
      }
      constexpr int kOutputPieces = kOutputs / kPiece<T>;
      for (int i = threadIdx.x; i < kDepth<T> * kOutputPieces; i += S::kThreads) {
        const int k = i / kOutputPieces, n = i % kOutputPieces * kPiece<T>;
        const int left = first + k < tokens ? max(0, min(to.rows - view.output - n, kPiece<T>)) : 0;
        copy_piece(stage.dy + k * S::kStride + n, dy + (left > 0 ? int64_t{first + k} * to.rows + view.output + n : 0),
                   left, vectors);
      }
    }
    copies_commit();
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_input = warp % kInputWarps * kWarpInputs, warp_output = warp / kInputWarps * S::kWarpOutputs;
  float sum[S::kWarpOutputs / 16][kWarpInputs / 8][4] = {}, of_row = 0.0f;
  for (int step = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();
    copy(step + kStages - 1);
    const typename S::Stage& stage = stages[step % kStages];
    sample_step<T, kExact, kOutputs>(stage, warp_output, warp_input, sum);
    if (sums_bias && threadIdx.x < kOutputs)
      for (int k = 0; k < kDepth<T>; ++k) of_row += to_float(stage.dy[k * S::kStride + threadIdx.x]);
  }

  float* sums = to.sums ? to.sums + part * (to.size + to.rows) : nullptr;
  const int row = view.output + threadIdx.x;
  if (sums_bias && threadIdx.x < kOutputs && row < to.rows) {
    if (sums)
      sums[to.size + row] = of_row;
    else
      to.dbias[row] = from_float<T>(of_row);
  }
#pragma unroll
  for (int n = 0; n < kWarpInputs / 8; ++n) {
    const int of_chunk = warp_input + n * 8 + lane % 4 * 2, inside = of_chunk & ((1 << to.width_bits) - 1);
    const int32_t* slots = chunk + (of_chunk >> to.width_bits) * fields + 2;
#pragma unroll
    for (int m = 0; m < S::kWarpOutputs / 16 * 2; ++m) {
      const int of_group = warp_output + m * 8 + lane / 4;
      const int slot = slots[of_group >> to.height_bits];
      if (slot < 0) continue;
      const int64_t place = (int64_t{slot} << (to.height_bits + to.width_bits)) +
                            ((of_group & ((1 << to.height_bits) - 1)) << to.width_bits) + inside;
      const float first = sum[m / 2][n][m % 2 * 2], second = sum[m / 2][n][m % 2 * 2 + 1];
      if (sums)
        *reinterpret_cast<Two<float>*>(sums + place) = {{first, second}};
      else
        *reinterpret_cast<Two<T>*>(to.dvalues + place) = {{from_float<T>(first), from_float<T>(second)}};
    }
  }
}

constexpr int kFinished = 256;  // elements that a block of threads finishes

// Adds up the parts, if there are any, and puts zeros past the last stored block.
template <typename T>
__device__ __forceinline__ void finish(const Gradient<T>& to, int parts) {
  const int64_t at = int64_t{blockIdx.x} * kFinished + threadIdx.x;
  const bool value = at < to.size;
  if (at >= to.size + to.rows || (!value && !to.dbias)) return;
  const bool stored = !value || at < int64_t{*to.unit_count} << to.height_bits;
  if (stored && parts == 1) return;  // written already
  float total = 0.0f;
  for (int part = 0; stored && part < parts; ++part) total += to.sums[part * (to.size + to.rows) + at];
  (value ? to.dvalues[at] : to.dbias[at - to.size]) = from_float<T>(total);
}

// How many parts the tokens are cut into: so many that the chunks fill the device twice, at least 8 steps each.
inline int parts(int64_t chunks, int64_t tokens, int depth, int multiprocessors) {
  const int64_t wanted = chunks > 0 ? 2 * multiprocessors / chunks : 1, most = tokens / (8 * depth);
  const int64_t bounded = wanted < most ? wanted : most;
  return static_cast<int>(bounded < 1 ? 1 : bounded < 32 ? bounded : 32);
}

}  // namespace spfde::cuda::blocks
