// The product of an unstructured W with what its columns read of tokens: forward and input gradient of every layer.
//
// A block computes kRows rows of W for kTokens tokens. A panel, as many columns as fit 32 KB, lies in shared memory,
// token by token side by side, while each row's stored weights that fall into it are multiplied: a lane keeps four
// tokens of kRowsOfWarp rows in registers, so a weight costs one vector load of the panel for four sums, and its place
// and value, queued by the warp, half a load more. Rows are dealt to warps by their length. How far a row has come is
// known from its ascending columns: no index but the contract's is read.
#pragma once

#include <type_traits>

#include "cuda/bounds.h"
#include "cuda/places.h"

namespace spfde::cuda::multiply {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRowsOfWarp = 16;
constexpr int kRows = kWarps * kRowsOfWarp;
constexpr int kTokens = 4 * kWarp;

template <typename T>
constexpr int kPanel = 256 / sizeof(T);  // columns
template <typename T>
constexpr int kStride = kTokens + 16 / sizeof(T);  // of a column: eight columns by four tokens meet no bank twice

// Rows `first`, `first` + step, ... of an index, `count` of them: what one launch computes.
struct Rows {
  const int32_t* ptr;
  int64_t first, step, count;

  __device__ __forceinline__ int32_t begin(int64_t row) const { return ptr[first + row * step]; }
  __device__ __forceinline__ int32_t end(int64_t row) const { return ptr[first + row * step + 1]; }
};

template <typename T>
struct Weight {
  Rows rows;
  const int32_t* col;
  const int32_t* perm;  // or nullptr
  const T* values;
  const T* bias;  // [rows.count] or nullptr
};

// What becomes of a row's sums, see spfde/epilogue.h.
template <typename T>
struct End {
  const float* scale;  // [rows.count] or nullptr
  const float* shift;  // [rows.count] or nullptr
  const T* residual;   // lies like y, or nullptr
  Bounds bounds;

  End(const Epilogue& of, int64_t row, int64_t offset)
      : scale(of.scale ? of.scale + row : nullptr),
        shift(of.shift ? of.shift + row : nullptr),
        residual(of.residual ? static_cast<const T*>(of.residual) + offset : nullptr),
        bounds(of.act) {}
};

// Y: row r of a token lies r * of_feature behind its place.
template <typename T>
struct Target {
  T* y;
  Grid grid;
  int tokens;
  bool vectors;  // four tokens from a multiple of four on lie side by side, as do those of x for Features
  End<T> end;
};

// What a row's sums are scaled by, and what is added.
template <typename T>
struct Affine {
  float scale, shift;

  __device__ __forceinline__ Affine(const Weight<T>& weight, const End<T>& end, int64_t row)
      : scale(end.scale ? end.scale[row] : 1.0f),
        shift(end.shift ? end.shift[row] : (weight.bias ? to_float(weight.bias[row]) : 0.0f)) {}
  __device__ __forceinline__ float of(float sum) const { return sum * scale + shift; }
};

// A stored weight of the panel: where its column begins in shared memory, in elements.
struct Entry {
  int column;
  float value;
};

template <typename T>
struct Shared {
  T panel[kPanel<T> * kStride<T>];
  alignas(16) Entry queue[kWarps][kWarp];
  int length[kRows];
  int dealt[kRows];  // row of each place: kRowsOfWarp places for each warp
};

constexpr int kStaged = kWarp + 1;  // floats of a row of Y while it lies in shared memory, in the place of the panel

// Longest row first to warp 0, 1, ..., then back: the warps' sums of lengths are about equal. Ties by number.
__device__ __forceinline__ void deal(const Rows& rows, int64_t first, int* length, int* dealt) {
  const int mine = threadIdx.x;
  if (mine < kRows) {
    const int64_t row = first + mine;
    length[mine] = row < rows.count ? rows.end(row) - rows.begin(row) : 0;
  }
  __syncthreads();
  if (mine < kRows) {
    int rank = 0;
    for (int other = 0; other < kRows; ++other)
      rank += length[other] > length[mine] || (length[other] == length[mine] && other < mine);
    const int round = rank / kWarps, place = rank % kWarps;
    const int warp = round % 2 ? kWarps - 1 - place : place;
    dealt[warp * kRowsOfWarp + round] = mine;
  }
}

// Copies columns [first, first + kPanel) of the block's tokens into the panel; zero where there are none. kAlong: a
// thread's four tokens lie along memory, and it goes from column to column; else neighbouring threads take neighbouring
// columns.
template <typename T, bool kAlong, typename Source>
struct Copier {
  const Source& source;
  int token, left;  // along: this thread's first token, and how many of its four there are
  bool vectors;
  typename Source::Pixel pixel[4];

  __device__ __forceinline__ Copier(const Source& source, int first_token, int tokens, bool vectors)
      : source(source), token(first_token), left(tokens - first_token), vectors(vectors) {
    if constexpr (kAlong) {
      token += threadIdx.x % kWarp * 4;
      left = max(0, min(tokens - token, 4));
#pragma unroll
      for (int v = 0; v < 4; ++v) pixel[v] = source.pixel(min(token + v, tokens - 1));
    }
  }

  __device__ __forceinline__ void copy(int64_t first, T* panel) const {
    if constexpr (kAlong) {
      T* target = panel + threadIdx.x % kWarp * 4;
      for (int c = threadIdx.x / kWarp; c < kPanel<T>; c += kWarps) {
        const bool there = first + c < source.columns;
        const auto column = source.column(first + c);
        Four<T> four;
        if constexpr (std::is_same_v<Source, Features<T>>) {
          if (there && left == 4 && vectors) {
            *reinterpret_cast<Four<T>*>(target + c * kStride<T>) =
                *reinterpret_cast<const Four<T>*>(source.x + pixel[0] + column);
            continue;
          }
        }
#pragma unroll
        for (int v = 0; v < 4; ++v)
          four.at[v] = there && v < left ? source.load(pixel[v], column) : from_float<T>(0.0f);
        *reinterpret_cast<Four<T>*>(target + c * kStride<T>) = four;
      }
    } else {
      const int c0 = threadIdx.x % 8, t0 = threadIdx.x / 8 % 4, warp = threadIdx.x / kWarp;
      for (int block = warp; block < kPanel<T> / 8 * (kTokens / 4); block += kWarps) {
        const int c = block % (kPanel<T> / 8) * 8 + c0, t = block / (kPanel<T> / 8) * 4 + t0;
        const bool there = first + c < source.columns && t < left;
        panel[c * kStride<T> + t] =
            there ? source.load(source.pixel(token + t), source.column(first + c)) : from_float<T>(0.0f);
      }
    }
  }
};

// kAlong: tokens lie along memory, in x and in y; else features do.
template <typename T, bool kAlong, typename Source>
__device__ __forceinline__ void block(const Weight<T>& weight, const Source& source, const Target<T>& target) {
  auto& shared = *reinterpret_cast<Shared<T>*>(shared_memory());
  const Rows& rows = weight.rows;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first_token = blockIdx.x * kTokens;
  const int64_t first_row = int64_t{blockIdx.y} * kRows;
  const Copier<T, kAlong, Source> copier(source, first_token, target.tokens, target.vectors);
  deal(rows, first_row, shared.length, shared.dealt);
  __syncthreads();

  // Lane i holds how far row i of the warp has come, and its end.
  int next = 0, end = 0;
  if (lane < kRowsOfWarp) {
    const int64_t row = first_row + shared.dealt[warp * kRowsOfWarp + lane];
    if (row < rows.count) next = rows.begin(row), end = rows.end(row);
  }
  float sum[kRowsOfWarp][4] = {};
  Entry* queue = shared.queue[warp];
  for (int64_t first = 0; first < source.columns; first += kPanel<T>) {
    __syncthreads();
    copier.copy(first, shared.panel);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      int at = __shfl_sync(kAll, next, i);
      const int last = __shfl_sync(kAll, end, i);
      for (int count = kWarp; count == kWarp;) {
        const int64_t behind = at + lane < last ? weight.col[at + lane] - first : kPanel<T>;
        const bool stored = behind < kPanel<T>;
        count = __popc(__ballot_sync(kAll, stored));  // columns ascend: the first `count` lanes
        if (stored)
          queue[lane] = {static_cast<int>(behind) * kStride<T>,
                         to_float(weight.values[weight.perm ? weight.perm[at + lane] : at + lane])};
        __syncwarp();
#pragma unroll 2  // by four registers run out on sm_90
        for (int j = 0; j < count; ++j) {
          const Entry entry = queue[j];
          const Four<T> four = *reinterpret_cast<const Four<T>*>(shared.panel + entry.column + 4 * lane);
#pragma unroll
          for (int v = 0; v < 4; ++v) sum[i][v] += entry.value * to_float(four.at[v]);
        }
        __syncwarp();
        at += count;
      }
      if (lane == i) next = at;
    }
  }

  if constexpr (kAlong) {
    const int token = first_token + 4 * lane, left = max(0, min(target.tokens - token, 4));
    const int64_t place = target.grid.place(min(token, target.tokens - 1));
    int next_to[4];  // in 32 bits: this is where most registers are in use
#pragma unroll
    for (int v = 0; v < 4; ++v)
      next_to[v] = static_cast<int>(target.grid.place(min(token + v, target.tokens - 1)) - place);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const int64_t row = first_row + shared.dealt[warp * kRowsOfWarp + i];
      if (row >= rows.count) continue;
      const Affine<T> affine(weight, target.end, row);
      const int64_t at = place + row * target.grid.of_feature;
      const bool vectors = left == 4 && target.vectors;
      Four<T> four;
#pragma unroll
      for (int v = 0; v < 4; ++v) four.at[v] = from_float<T>(0.0f);
      if (target.end.residual) {
        const T* residual = target.end.residual + at;
        if (vectors) {
          four = *reinterpret_cast<const Four<T>*>(residual);
        } else {
#pragma unroll
          for (int v = 0; v < 4; ++v)
            if (v < left) four.at[v] = residual[next_to[v]];
        }
      }
#pragma unroll
      for (int v = 0; v < 4; ++v)
        four.at[v] = from_float<T>(target.end.bounds.apply(affine.of(sum[i][v]) + to_float(four.at[v])));
      T* y = target.y + at;
      if (vectors) {
        *reinterpret_cast<Four<T>*>(y) = four;
      } else {
#pragma unroll
        for (int v = 0; v < 4; ++v)
          if (v < left) y[next_to[v]] = four.at[v];
      }
    }
  } else {  // transposed in shared memory, a quarter of the tokens at a time
    float* staged = reinterpret_cast<float*>(shared.panel);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) staged[shared.dealt[warp * kRowsOfWarp + i] * kStaged + lane] = sum[i][v];
      __syncthreads();
      for (int at = threadIdx.x; at < kRows * kWarp; at += kThreads) {
        const int64_t row = first_row + at % kRows;
        const int token = first_token + at / kRows * 4 + v;
        if (row >= rows.count || token >= target.tokens) continue;
        const int64_t place = target.grid.place(token) + row * target.grid.of_feature;
        const float z = Affine<T>(weight, target.end, row).of(staged[at % kRows * kStaged + at / kRows]);
        const float added = target.end.residual ? to_float(target.end.residual[place]) : 0.0f;
        target.y[place] = from_float<T>(target.end.bounds.apply(z + added));
      }
    }
  }
}

}  // namespace spfde::cuda::multiply
