// dW = dY^T X at the stored positions of an unstructured W, with the bias gradient in the same pass.
//
// A block computes what is stored in a tile of kTile rows by kTile columns, kEntries of it at a time: for one word of
// tokens after another (kWords of each feature, transposed) both operands lie in shared memory; a warp keeps a sum for
// each of kEntriesOfWarp entries, lanes holding different tokens, and adds the lanes up at the end. Where tiles are too
// few for the device the batch is cut into parts, whose sums are added in their order.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

constexpr int kTile = 128;
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kEntriesOfWarp = 64;
constexpr int kEntries = kWarps * kEntriesOfWarp;
constexpr int kRowsOfWarp = kTile / kWarps;
constexpr int kMostParts = 16;

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

// Copies tokens [first, first + kTokens) of kTile features, zero where there are none.
template <typename T, bool kPlanes>
__device__ void copy(const T* source, int64_t features, int64_t first_feature, int64_t positions, int64_t first,
                     int64_t end, T* target) {
  for (int at = threadIdx.x; at < kTile * kTokens<T>; at += kThreads) {
    const int f = kPlanes ? at / kTokens<T> : at % kTile, t = kPlanes ? at % kTokens<T> : at / kTile;
    const int64_t feature = first_feature + f, token = first + t;
    const bool there = feature < features && token < end;
    target[f * kStride<T> + t] =
        there ? source[token_offset<kPlanes>(token, features, positions) + feature_offset<kPlanes>(feature, positions)]
              : from_float<T>(0.0f);
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

// Sums go to `sums` [parts, capacity + rows] where there are parts, else to dvalues and dbias. Blocks: column tiles,
// row tiles, parts.
template <typename T, bool kPlanes>
__global__ void __launch_bounds__(kThreads, 1)
    sddmm_kernel(int64_t rows, int64_t cols, int64_t tokens, int64_t positions, int64_t capacity,
                 const int32_t* row_ptr, const int32_t* col, const T* dy, const T* x, T* dvalues, T* dbias,
                 float* sums) {
  auto& shared = *reinterpret_cast<Shared<T>*>(shared_memory());
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first_row = int64_t{blockIdx.y} * kTile, first_col = int64_t{blockIdx.x} * kTile;
  const int64_t steps = (tokens + kTokens<T> - 1) / kTokens<T>, parts = gridDim.z, part = blockIdx.z;
  const int64_t begin = steps * part / parts * kTokens<T>, end = min(steps * (part + 1) / parts * kTokens<T>, tokens);
  if (sums) sums += part * (capacity + rows);
  const int found = find_entries(row_ptr, col, rows, first_row, first_col, shared);
  const bool sums_bias = dbias && blockIdx.x == 0;
  for (int base = 0; base < found || (base == 0 && sums_bias); base += kEntries) {
    for (int at = threadIdx.x; at < min(found - base, kEntries); at += kThreads)
      place_entry(base + at, at, col, first_col, shared);
    const int mine = max(0, min(found - base - warp * kEntriesOfWarp, kEntriesOfWarp));
    float sum[kEntriesOfWarp] = {}, of_row[kRowsOfWarp] = {};
    for (int64_t token = begin; token < end; token += kTokens<T>) {
      __syncthreads();
      copy<T, kPlanes>(dy, rows, first_row, positions, token, end, shared.dy);
      copy<T, kPlanes>(x, cols, first_col, positions, token, end, shared.x);
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
      if (lane == 0 && !sums) dvalues[slot] = from_float<T>(total);
    }
    if (sums_bias && base == 0) {
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) {
        const float total = warp_sum(of_row[i]);
        const int64_t row = first_row + warp * kRowsOfWarp + i;
        if (lane == 0 && row < rows && sums) sums[capacity + row] = total;
        if (lane == 0 && row < rows && !sums) dbias[row] = from_float<T>(total);
      }
    }
    __syncthreads();
  }
}

// Adds up the parts, if there are any, and puts zeros past the last stored weight.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(int64_t rows, int64_t capacity, int parts, const int32_t* row_ptr, const float* sums, T* dvalues,
                  T* dbias) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool value = at < capacity;
  if (at >= capacity + rows || (!value && !dbias)) return;
  const bool stored = !value || at < row_ptr[rows];
  if (stored && parts == 1) return;  // written already
  float total = 0.0f;
  for (int part = 0; stored && part < parts; ++part) total += sums[part * (capacity + rows) + at];
  (value ? dvalues[at] : dbias[at - capacity]) = from_float<T>(total);
}

int64_t parts(const SddmmArgs& args, int multiprocessors) {
  const int64_t tiles = ceil_div(args.rows, kTile) * ceil_div(args.cols, kTile);
  const int64_t steps = args.batch / (4 * kTile);  // a part is worth its sums from 512 tokens on
  return tiles == 0 ? 1 : std::max<int64_t>(1, std::min<int64_t>({multiprocessors / tiles, steps, kMostParts}));
}

template <typename T, bool kPlanes>
void run(const SddmmArgs& args, int count, float* sums, const Exec& exec) {
  const std::string problem = "sddmm " + sizes(args.rows, args.cols, args.batch);
  auto* dvalues = static_cast<T*>(args.dvalues);
  auto* dbias = static_cast<T*>(args.dbias);
  const int64_t row_tiles = ceil_div(args.rows, kTile), col_tiles = std::max<int64_t>(1, ceil_div(args.cols, kTile));
  if (row_tiles > 0)
    launch(problem, exec, {dim3(col_tiles, row_tiles, count), dim3(kThreads), sizeof(Shared<T>)},
           sddmm_kernel<T, kPlanes>, args.rows, args.cols, args.batch, args.positions, args.capacity, args.row_ptr,
           args.col, static_cast<const T*>(args.dy), static_cast<const T*>(args.x), dvalues, dbias, sums);
  if (args.capacity + args.rows > 0)
    launch(problem, exec, {dim3(ceil_div(args.capacity + args.rows, kThreads)), dim3(kThreads)}, finish_kernel<T>,
           args.rows, args.capacity, count, args.row_ptr, sums, dvalues, dbias);
}

}  // namespace

int64_t sddmm_scratch(const SddmmArgs& args, int multiprocessors) {
  const int64_t count = parts(args, multiprocessors);
  return count == 1 ? 0 : count * (args.capacity + args.rows) * static_cast<int64_t>(sizeof(float));
}

void sddmm(const SddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  const int count = static_cast<int>(parts(args, multiprocessors));
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.positions == 1 ? run<T, false>(args, count, sums, exec) : run<T, true>(args, count, sums, exec);
  });
}

}  // namespace spfde::cuda
