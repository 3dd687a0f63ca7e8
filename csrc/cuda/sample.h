// The products of dY with what the columns of W read, at the stored positions of an unstructured W only: weight
// gradients.
//
// A block computes what is stored in a tile of kTile rows by kTile columns, kEntries of it at a time: for one word of
// tokens after another (kLanes of each feature) both operands lie in shared memory; a warp keeps a sum for each of
// kEntriesOfWarp entries, lanes holding different tokens, and adds the lanes up at the end. The batch may be cut into
// parts, whose sums are added in their order.
#pragma once

#include "cuda/places.h"

namespace spfde::cuda::sample {

constexpr int kTile = 128;
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kEntriesOfWarp = 48;
constexpr int kEntries = kWarps * kEntriesOfWarp;
constexpr int kRowsOfWarp = kTile / kWarps;

template <typename T>
constexpr int kLanes = 4 / sizeof(T);  // tokens in a word
template <typename T>
constexpr int kTokens = kWarp * kLanes<T>;
template <typename T>
constexpr int kStride = kTokens<T> + kLanes<T>;  // of a feature, in elements: one word more than lanes

template <typename T>
struct Shared {
  T dy[kTile * kStride<T>], x[kTile * kStride<T>];
  alignas(16) uint2 entry[kEntries];  // where the entry's row of dY and column of X begin, in elements
  int32_t slot[kEntries];             // where its sum goes
  int32_t first[kTile];               // of each row, in the tile
  int32_t before[kTile + 1];          // entries of the tile in front of each row
};

// Copies tokens [first, first + kTokens) of columns [first_column, first_column + kTile), zero where there are none.
// kAlong: tokens lie along memory, else columns do.
template <typename T, bool kAlong, typename Source>
__device__ void copy(const Source& source, int64_t first_column, int first, int end, T* target) {
  for (int at = threadIdx.x; at < kTile * kTokens<T>; at += kThreads) {
    const int c = kAlong ? at / kTokens<T> : at % kTile, t = kAlong ? at % kTokens<T> : at / kTile;
    const bool there = first_column + c < source.columns && first + t < end;
    target[c * kStride<T> + t] =
        there ? source.load(source.pixel(first + t), source.column(first_column + c)) : from_float<T>(0.0f);
  }
}

// The products of a word of dY with one of X, summed.
template <typename T>
__device__ __forceinline__ float dot(const T* dy, const T* x) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) sum += to_float(dy[i]) * to_float(x[i]);
  return sum;
}

template <typename T>
__device__ int find_entries(const int32_t* row_ptr, const int32_t* col, int64_t rows, int64_t first_row,
                            int64_t first_col, Shared<T>& shared) {
  const int mine = threadIdx.x;
  if (mine < kTile) {
    int32_t first = 0, last = 0;
    if (first_row + mine < rows) {
      const int32_t begin = row_ptr[first_row + mine], end = row_ptr[first_row + mine + 1];
      first = lower_bound(col, begin, end, first_col);
      last = lower_bound(col, first, end, first_col + kTile);
    }
    shared.first[mine] = first;
    shared.before[mine + 1] = last - first;
  }
  __syncthreads();
  if (mine == 0) {
    shared.before[0] = 0;
    for (int r = 0; r < kTile; ++r) shared.before[r + 1] += shared.before[r];
  }
  __syncthreads();
  return shared.before[kTile];
}

// Entry `number` of the tile: its place in shared memory, and its slot.
template <typename T>
__device__ void place_entry(int number, int at, const int32_t* col, int64_t first_col, Shared<T>& shared) {
  const int row = lower_bound(shared.before, 0, kTile, int64_t{number} + 1) - 1;
  const int32_t slot = shared.first[row] + number - shared.before[row];
  shared.slot[at] = slot;
  shared.entry[at] = {static_cast<unsigned>(row) * kStride<T>,
                      static_cast<unsigned>(col[slot] - first_col) * kStride<T>};
}

// Where the sums go: to `sums` [parts, capacity + rows] where there are parts, else to dvalues and dbias. The index and
// dbias are those of the rows that one launch computes.
template <typename T>
struct Gradient {
  int64_t capacity, rows;  // of all launches together
  const int32_t* row_ptr;
  const int32_t* col;
  T* dvalues;
  T* dbias;  // or nullptr
  float* sums;
  int64_t first_row = 0;  // of the launch, among all rows
};

// Blocks: column tiles, row tiles, parts. kAlong: tokens lie along memory, in both operands; else features do.
template <typename T, bool kAlong, typename Source>
__device__ __forceinline__ void block(const Features<T>& dy, const Source& x, int tokens, const Gradient<T>& to) {
  auto& shared = *reinterpret_cast<Shared<T>*>(shared_memory());
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_col = int64_t{blockIdx.x} * kTile;
  const int64_t steps = (tokens + kTokens<T> - 1) / kTokens<T>, parts = gridDim.z, part = blockIdx.z;
  const int begin = static_cast<int>(steps * part / parts) * kTokens<T>;
  const int end = min(static_cast<int>(steps * (part + 1) / parts) * kTokens<T>, tokens);
  float* sums = to.sums ? to.sums + part * (to.capacity + to.rows) : nullptr;
  const int found = find_entries(to.row_ptr, to.col, dy.columns, first_row, first_col, shared);
  const bool sums_bias = to.dbias && blockIdx.x == 0;
  for (int base = 0; base < found || (base == 0 && sums_bias); base += kEntries) {
    for (int at = threadIdx.x; at < min(found - base, kEntries); at += kThreads)
      place_entry(base + at, at, to.col, first_col, shared);
    const int mine = max(0, min(found - base - warp * kEntriesOfWarp, kEntriesOfWarp));
    float sum[kEntriesOfWarp] = {}, of_row[kRowsOfWarp] = {};
    for (int token = begin; token < end; token += kTokens<T>) {
      __syncthreads();
      copy<T, kAlong>(dy, first_row, token, end, shared.dy);
      copy<T, kAlong>(x, first_col, token, end, shared.x);
      __syncthreads();
      const uint2* entry = shared.entry + warp * kEntriesOfWarp;
#pragma unroll
      for (int i = 0; i < kEntriesOfWarp; ++i) {
        if (i >= mine) break;
        sum[i] += dot(shared.dy + entry[i].x + lane * kLanes<T>, shared.x + entry[i].y + lane * kLanes<T>);
      }
      if (sums_bias && base == 0)
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
          for (int l = 0; l < kLanes<T>; ++l)
            of_row[i] += to_float(shared.dy[(warp * kRowsOfWarp + i) * kStride<T> + lane * kLanes<T> + l]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEntriesOfWarp; ++i) {
      if (i >= mine) break;
      const float total = warp_sum(sum[i]);
      const int32_t slot = shared.slot[warp * kEntriesOfWarp + i];
      if (lane == 0 && sums) sums[slot] = total;
      if (lane == 0 && !sums) to.dvalues[slot] = from_float<T>(total);
    }
    if (sums_bias && base == 0) {
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) {
        const float total = warp_sum(of_row[i]);
        const int64_t row = first_row + warp * kRowsOfWarp + i;
        if (lane == 0 && row < dy.columns && sums) sums[to.capacity + to.first_row + row] = total;
        if (lane == 0 && row < dy.columns && !sums) to.dbias[row] = from_float<T>(total);
      }
    }
    __syncthreads();
  }
}

// Adds up the parts, if there are any, and puts zeros past the last stored weight.
template <typename T>
__device__ __forceinline__ void finish(const Gradient<T>& to, int parts) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool value = at < to.capacity;
  if (at >= to.capacity + to.rows || (!value && !to.dbias)) return;
  const bool stored = !value || at < to.row_ptr[to.rows];
  if (stored && parts == 1) return;  // written already
  float total = 0.0f;
  for (int part = 0; stored && part < parts; ++part) total += to.sums[part * (to.capacity + to.rows) + at];
  (value ? to.dvalues[at] : to.dbias[at - to.capacity]) = from_float<T>(total);
}

// How many parts a batch is cut into: so many that the blocks fill the device, each worth its sums.
inline int parts(int64_t rows, int64_t columns, int64_t tokens, int multiprocessors) {
  const int64_t tiles = (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
  if (tiles == 0) return 1;
  const int64_t most = tokens / (4 * kTile) < 16 ? tokens / (4 * kTile) : 16, wanted = multiprocessors / tiles;
  return static_cast<int>(wanted < most ? (wanted > 1 ? wanted : 1) : (most > 1 ? most : 1));
}

}  // namespace spfde::cuda::sample
