// Between stored values and a dense weight: a warp takes a row.
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(int64_t rows, int64_t cols, const int32_t* row_ptr, const int32_t* col, const T* values, T* dense) {
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp;
  if (row >= rows) return;
  for (int32_t k = row_ptr[row] + threadIdx.x % kWarp; k < row_ptr[row + 1]; k += kWarp)
    dense[row * cols + col[k]] = values[k];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(int64_t rows, int64_t cols, int64_t capacity, const int32_t* row_ptr, const int32_t* col,
                  const T* dense, T* values) {
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp;
  if (row < rows)
    for (int32_t k = row_ptr[row] + threadIdx.x % kWarp; k < row_ptr[row + 1]; k += kWarp)
      values[k] = dense[row * cols + col[k]];
  for (int64_t k = row_ptr[rows] + int64_t{blockIdx.x} * kThreads + threadIdx.x; k < capacity;
       k += int64_t{gridDim.x} * kThreads)
    values[k] = from_float<T>(0.0f);
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kRows)); }

}  // namespace

void scatter(const ScatterArgs& args, const Exec& exec) {
  if (args.rows == 0) return;
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("scatter " + sizes(args.rows, args.cols, 1), exec, {dim3(blocks(args.rows)), dim3(kThreads)},
           scatter_kernel<T>, args.rows, args.cols, args.row_ptr, args.col, static_cast<const T*>(args.values),
           static_cast<T*>(args.dense));
  });
}

void gather(const GatherArgs& args, const Exec& exec) {
  if (args.rows == 0 && args.capacity == 0) return;
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("gather " + sizes(args.rows, args.cols, 1), exec, {dim3(blocks(args.rows) + 1), dim3(kThreads)},
           gather_kernel<T>, args.rows, args.cols, args.capacity, args.row_ptr, args.col,
           static_cast<const T*>(args.dense), static_cast<T*>(args.values));
  });
}

}  // namespace spfde::cuda
