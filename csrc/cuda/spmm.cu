// Y = X W^T + bias for an unstructured W; the input gradient is the same with the transposed index.
//
// A block computes kRows rows of W for kTokens tokens. A panel of X, as many columns as fit 32 KB, lies transposed in
// shared memory while each row's stored weights that fall into it are multiplied: a lane keeps four tokens of
// kRowsOfWarp rows in registers, so a weight costs one vector load of X for four sums, and the index and value, queued
// by the warp, half a load more. Rows are dealt to warps by their length. How far a row has come is known from its
// ascending columns: no index but the contract's is read.
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRowsOfWarp = 16;
constexpr int kRows = kWarps * kRowsOfWarp;
constexpr int kTokens = 4 * kWarp;

template <typename T>
constexpr int kPanel = 256 / sizeof(T);  // columns
template <typename T>
constexpr int kStride =
    kTokens + 16 / sizeof(T);  // of a column: writes of eight columns by four tokens meet no bank twice

// A stored weight of the panel: where its column begins in shared memory, in elements.
struct Entry {
  int column;
  float value;
};

template <typename T>
struct Shared {
  T x[kPanel<T> * kStride<T>];
  alignas(16) Entry queue[kWarps][kWarp];
  int length[kRows];
  int dealt[kRows];  // row of each place: kRowsOfWarp places for each warp
};

constexpr int kStaged = kWarp + 1;  // floats of a row of Y while it lies in shared memory, in the place of x

// Longest row first to warp 0, 1, ..., then back: the warps' sums of lengths are about equal. Ties by number.
__device__ void deal(const int32_t* row_ptr, int64_t rows, int64_t first, int* length, int* dealt) {
  const int mine = threadIdx.x;
  if (mine < kRows) {
    const int64_t row = first + mine;
    length[mine] = row < rows ? row_ptr[row + 1] - row_ptr[row] : 0;
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

template <typename T, bool kPlanes>
struct Panel {
  const T* x;
  int64_t cols, positions, token, tokens;  // token: the block's first
  bool vectors;                            // with kPlanes: four tokens from a multiple of four on lie side by side
  int64_t offset[4];                       // with kPlanes: of the tokens that this thread copies

  __device__ void prepare() {
    if constexpr (kPlanes) {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        offset[v] = token_offset<true>(min(token + threadIdx.x % kWarp * 4 + v, tokens - 1), cols, positions);
    }
  }

  // Copies columns [first, first + kPanel) of the block's tokens; zero where there are none.
  __device__ void copy(int64_t first, T* target) const {
    if constexpr (kPlanes) {
      const int lane = threadIdx.x % kWarp, left = static_cast<int>(min(tokens - token - 4 * lane, int64_t{4}));
      for (int c = threadIdx.x / kWarp; c < kPanel<T>; c += kWarps) {
        const T* source = x + (first + c) * positions;
        Four<T> four;
        if (first + c < cols && left == 4 && vectors) {
          four = *reinterpret_cast<const Four<T>*>(source + offset[0]);
        } else {
#pragma unroll
          for (int v = 0; v < 4; ++v)
            four.at[v] = first + c < cols && v < left ? source[offset[v]] : from_float<T>(0.0f);
        }
        *reinterpret_cast<Four<T>*>(target + c * kStride<T> + 4 * lane) = four;
      }
    } else {
      const int c0 = threadIdx.x % 8, t0 = threadIdx.x / 8 % 4, warp = threadIdx.x / kWarp;
      for (int block = warp; block < kPanel<T> / 8 * (kTokens / 4); block += kWarps) {
        const int c = block % (kPanel<T> / 8) * 8 + c0, t = block / (kPanel<T> / 8) * 4 + t0;
        const bool there = first + c < cols && token + t < tokens;
        target[c * kStride<T> + t] = there ? x[(token + t) * cols + first + c] : from_float<T>(0.0f);
      }
    }
  }
};

template <typename T, bool kPlanes>
__global__ void __launch_bounds__(kThreads, 2)
    spmm_kernel(int64_t rows, int64_t cols, int64_t tokens, int64_t positions, const int32_t* row_ptr,
                const int32_t* col, const int32_t* perm, const T* values, const T* bias, const T* x, T* y,
                bool vectors) {
  auto& shared = *reinterpret_cast<Shared<T>*>(shared_memory());
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first_row = int64_t{blockIdx.y} * kRows, first_token = int64_t{blockIdx.x} * kTokens;
  Panel<T, kPlanes> panel{x, cols, positions, first_token, tokens, vectors, {}};
  panel.prepare();
  deal(row_ptr, rows, first_row, shared.length, shared.dealt);
  __syncthreads();

  // Lane i holds how far row i of the warp has come, and its end.
  int next = 0, end = 0;
  if (lane < kRowsOfWarp) {
    const int64_t row = first_row + shared.dealt[warp * kRowsOfWarp + lane];
    if (row < rows) next = row_ptr[row], end = row_ptr[row + 1];
  }
  float sum[kRowsOfWarp][4] = {};
  Entry* queue = shared.queue[warp];
  for (int64_t first = 0; first < cols; first += kPanel<T>) {
    __syncthreads();
    panel.copy(first, shared.x);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      int at = __shfl_sync(kAll, next, i);
      const int last = __shfl_sync(kAll, end, i);
      for (int count = kWarp; count == kWarp;) {
        const int column =
            at + lane < last ? static_cast<int>(min(col[at + lane] - first, int64_t{kPanel<T>})) : kPanel<T>;
        const bool stored = column < kPanel<T>;
        count = __popc(__ballot_sync(kAll, stored));  // columns ascend: the first `count` lanes
        if (stored) queue[lane] = {column * kStride<T>, to_float(values[perm ? perm[at + lane] : at + lane])};
        __syncwarp();
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const Entry entry = queue[j];
          const Four<T> four = *reinterpret_cast<const Four<T>*>(shared.x + entry.column + 4 * lane);
#pragma unroll
          for (int v = 0; v < 4; ++v) sum[i][v] += entry.value * to_float(four.at[v]);
        }
        __syncwarp();
        at += count;
      }
      if (lane == i) next = at;
    }
  }

  if constexpr (kPlanes) {
    const int left = static_cast<int>(min(tokens - first_token - 4 * lane, int64_t{4}));
    int64_t offset[4];
#pragma unroll
    for (int v = 0; v < 4; ++v)
      offset[v] = token_offset<true>(min(first_token + 4 * lane + v, tokens - 1), rows, positions);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const int64_t row = first_row + shared.dealt[warp * kRowsOfWarp + i];
      if (row >= rows) continue;
      const float add = bias ? to_float(bias[row]) : 0.0f;
      Four<T> four;
#pragma unroll
      for (int v = 0; v < 4; ++v) four.at[v] = from_float<T>(sum[i][v] + add);
      T* target = y + row * positions;
      if (left == 4 && vectors) {
        *reinterpret_cast<Four<T>*>(target + offset[0]) = four;
      } else {
#pragma unroll
        for (int v = 0; v < 4; ++v)
          if (v < left) target[offset[v]] = four.at[v];
      }
    }
  } else {  // transposed in shared memory, a quarter of the tokens at a time
    float* staged = reinterpret_cast<float*>(shared.x);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) staged[shared.dealt[warp * kRowsOfWarp + i] * kStaged + lane] = sum[i][v];
      __syncthreads();
      for (int at = threadIdx.x; at < kRows * kWarp; at += kThreads) {
        const int64_t row = first_row + at % kRows, token = first_token + at / kRows * 4 + v;
        if (row >= rows || token >= tokens) continue;
        y[token * rows + row] =
            from_float<T>(staged[at % kRows * kStaged + at / kRows] + (bias ? to_float(bias[row]) : 0.0f));
      }
    }
  }
}

template <typename T, bool kPlanes>
void run(const SpmmArgs& args, const Exec& exec) {
  static_assert(sizeof(Shared<T>) <= 48 << 10 && kRows * kStaged * sizeof(float) <= sizeof(Shared<T>::x));
  const int64_t tokens = args.batch;
  if (args.rows == 0 || tokens == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y);
  launch("spmm " + sizes(args.rows, args.cols, tokens), exec,
         {dim3(ceil_div(tokens, kTokens), ceil_div(args.rows, kRows)), dim3(kThreads), sizeof(Shared<T>)},
         spmm_kernel<T, kPlanes>, args.rows, args.cols, tokens, args.positions, args.row_ptr, args.col, args.perm,
         static_cast<const T*>(args.values), static_cast<const T*>(args.bias), static_cast<const T*>(args.x),
         static_cast<T*>(args.y), args.positions % 4 == 0 && address % (4 * sizeof(T)) == 0);
}

}  // namespace

void spmm(const SpmmArgs& args, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.positions == 1 ? run<T, false>(args, exec) : run<T, true>(args, exec);
  });
}

}  // namespace spfde::cuda
