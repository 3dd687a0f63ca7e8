// The CUDA kernels for weights in blocks, where they were built.
#include "module.h"

#ifdef SPFDE_CUDA
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "cuda/ops.h"
#include "cuda_arguments.h"

namespace {

// The fields of Tiles, in their order.
using Fields = std::array<uintptr_t, 7>;

spfde::Tiles tiles_of(const Fields& f) {
  const auto number = [&](int i) { return static_cast<int64_t>(f[i]); };
  return {number(0), at{f[1]}, number(2), at{f[3]}, number(4), at{f[5]}, number(6)};
}

spfde::BlockSpmmArgs spmm_sizes(int64_t outer, int64_t inner, int64_t batch, int64_t height, int64_t width,
                                bool transposed, const Fields& tiles) {
  spfde::BlockSpmmArgs args = {};
  args.outer = outer;
  args.inner = inner;
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.transposed = transposed;
  args.tiles = tiles_of(tiles);
  return args;
}

spfde::BlockSddmmArgs sddmm_sizes(int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width,
                                  int64_t capacity, const Fields& tiles, const std::string& dtype) {
  spfde::BlockSddmmArgs args = {};
  args.rows = rows;
  args.cols = cols;
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.capacity = capacity;
  args.tiles = tiles_of(tiles);
  args.dtype = dtype_of(dtype);
  return args;
}

spfde::BlockConv2dWeightGradArgs conv2d_sizes(const Numbers& shape, int64_t height, int64_t width, int64_t capacity,
                                              const Fields& tiles, const std::string& dtype) {
  spfde::BlockConv2dWeightGradArgs args = {};
  args.shape = shape_of(shape);
  args.height = height;
  args.width = width;
  args.capacity = capacity;
  args.tiles = tiles_of(tiles);
  args.dtype = dtype_of(dtype);
  return args;
}

void bind_conv2d_blocks(py::module_& m) {
  m.def(
      "cuda_block_conv2d",
      [](const Numbers& shape, int64_t height, int64_t width, bool transposed, const Fields& tiles, uintptr_t values,
         uintptr_t bias, uintptr_t x, uintptr_t y, const std::string& dtype, bool tf32, int device, uintptr_t stream) {
        spfde::cuda::block_conv2d(
            {
                .shape = shape_of(shape),
                .height = height,
                .width = width,
                .transposed = transposed,
                .tiles = tiles_of(tiles),
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .dtype = dtype_of(dtype),
                .tf32 = tf32,
            },
            {.device = device, .stream = stream});
      },
      release(), "shape"_a, "height"_a, "width"_a, "transposed"_a, "tiles"_a, "values"_a, "bias"_a, "x"_a, "y"_a,
      "dtype"_a, "tf32"_a, "device"_a, "stream"_a);
  m.def(
      "cuda_block_conv2d_weight_grad_scratch",
      [](const Numbers& shape, int64_t height, int64_t width, int64_t capacity, const Fields& tiles,
         const std::string& dtype, int multiprocessors) {
        return spfde::cuda::block_conv2d_weight_grad_scratch(conv2d_sizes(shape, height, width, capacity, tiles, dtype),
                                                             multiprocessors);
      },
      release(), "shape"_a, "height"_a, "width"_a, "capacity"_a, "tiles"_a, "dtype"_a, "multiprocessors"_a);
  m.def(
      "cuda_block_conv2d_weight_grad",
      [](const Numbers& shape, int64_t height, int64_t width, int64_t capacity, const Fields& tiles,
         uintptr_t unit_count, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias, const std::string& dtype,
         bool tf32, int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        auto args = conv2d_sizes(shape, height, width, capacity, tiles, dtype);
        args.unit_count = at{unit_count};
        args.dy = at{dy};
        args.x = at{x};
        args.dvalues = at{dvalues};
        args.dbias = at{dbias};
        args.tf32 = tf32;
        spfde::cuda::block_conv2d_weight_grad(args, multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "shape"_a, "height"_a, "width"_a, "capacity"_a, "tiles"_a, "unit_count"_a, "dy"_a, "x"_a, "dvalues"_a,
      "dbias"_a, "dtype"_a, "tf32"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
}

}  // namespace

void bind_cuda_blocks(py::module_& m) {
  bind_conv2d_blocks(m);
  m.def(
      "cuda_block_spmm_scratch",
      [](int64_t outer, int64_t inner, int64_t batch, int64_t height, int64_t width, bool transposed,
         const Fields& tiles) {
        return spfde::cuda::block_spmm_scratch(spmm_sizes(outer, inner, batch, height, width, transposed, tiles));
      },
      release(), "outer"_a, "inner"_a, "batch"_a, "height"_a, "width"_a, "transposed"_a, "tiles"_a);
  m.def(
      "cuda_block_spmm",
      [](int64_t outer, int64_t inner, int64_t batch, int64_t height, int64_t width, bool transposed,
         const Fields& tiles, uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y, const std::string& dtype,
         bool tf32, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::BlockSpmmArgs args = spmm_sizes(outer, inner, batch, height, width, transposed, tiles);
        args.values = at{values};
        args.bias = at{bias};
        args.x = at{x};
        args.y = at{y};
        args.dtype = dtype_of(dtype);
        args.tf32 = tf32;
        spfde::cuda::block_spmm(args, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "outer"_a, "inner"_a, "batch"_a, "height"_a, "width"_a, "transposed"_a, "tiles"_a, "values"_a,
      "bias"_a, "x"_a, "y"_a, "dtype"_a, "tf32"_a, "scratch"_a, "device"_a, "stream"_a);
  m.def(
      "cuda_block_sddmm_scratch",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, int64_t capacity,
         const Fields& tiles, const std::string& dtype, int multiprocessors) {
        return spfde::cuda::block_sddmm_scratch(sddmm_sizes(rows, cols, batch, height, width, capacity, tiles, dtype),
                                                multiprocessors);
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "height"_a, "width"_a, "capacity"_a, "tiles"_a, "dtype"_a,
      "multiprocessors"_a);
  m.def(
      "cuda_block_sddmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, int64_t capacity,
         const Fields& tiles, uintptr_t unit_count, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias,
         const std::string& dtype, bool tf32, int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::BlockSddmmArgs args = sddmm_sizes(rows, cols, batch, height, width, capacity, tiles, dtype);
        args.unit_count = at{unit_count};
        args.dy = at{dy};
        args.x = at{x};
        args.dvalues = at{dvalues};
        args.dbias = at{dbias};
        args.tf32 = tf32;
        spfde::cuda::block_sddmm(args, multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "height"_a, "width"_a, "capacity"_a, "tiles"_a, "unit_count"_a, "dy"_a,
      "x"_a, "dvalues"_a, "dbias"_a, "dtype"_a, "tf32"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
}
#else
void bind_cuda_blocks(py::module_&) {}
#endif
