// The CUDA kernels, where they were built.
#include "module.h"

#ifdef SPFDE_CUDA
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "cuda/ops.h"
#include "cuda_arguments.h"

namespace {

// Scale, shift and residual of an epilogue, and its activation.
using End = std::array<uintptr_t, 4>;

spfde::Epilogue epilogue_of(const End& end) {
  return {at{end[0]}, at{end[1]}, at{end[2]}, spfde::Activation{static_cast<int>(end[3])}};
}

void bind_conv2d_on_cuda(py::module_& m) {
  m.def(
      "cuda_conv2d",
      [](const Numbers& shape, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t bias, uintptr_t x,
         uintptr_t y, bool x_channels_last, bool y_channels_last, const std::string& dtype, const End& end, int device,
         uintptr_t stream) {
        spfde::cuda::conv2d(
            {
                .shape = shape_of(shape),
                .row_ptr = at{row_ptr},
                .col = at{col},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .x_channels_last = x_channels_last,
                .y_channels_last = y_channels_last,
                .dtype = dtype_of(dtype),
                .epilogue = epilogue_of(end),
            },
            {.device = device, .stream = stream});
      },
      release(), "shape"_a, "row_ptr"_a, "col"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "x_channels_last"_a,
      "y_channels_last"_a, "dtype"_a, "epilogue"_a, "device"_a, "stream"_a);
  m.def(
      "cuda_conv2d_input_grad",
      [](const Numbers& shape, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t perm, uintptr_t dy,
         uintptr_t dx, bool dy_channels_last, bool dx_channels_last, const std::string& dtype, int device,
         uintptr_t stream) {
        spfde::cuda::conv2d_input_grad(
            {
                .shape = shape_of(shape),
                .row_ptr = at{row_ptr},
                .col = at{col},
                .perm = at{perm},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
                .dy_channels_last = dy_channels_last,
                .dx_channels_last = dx_channels_last,
                .dtype = dtype_of(dtype),
            },
            {.device = device, .stream = stream});
      },
      release(), "shape"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "dy"_a, "dx"_a, "dy_channels_last"_a,
      "dx_channels_last"_a, "dtype"_a, "device"_a, "stream"_a);
  m.def(
      "cuda_conv2d_weight_grad_scratch",
      [](const Numbers& shape, int64_t capacity, int multiprocessors) {
        return spfde::cuda::conv2d_weight_grad_scratch({.shape = shape_of(shape), .capacity = capacity},
                                                       multiprocessors);
      },
      release(), "shape"_a, "capacity"_a, "multiprocessors"_a);
  m.def(
      "cuda_conv2d_weight_grad",
      [](const Numbers& shape, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dy, uintptr_t x,
         bool dy_channels_last, bool x_channels_last, uintptr_t dvalues, uintptr_t dbias, const std::string& dtype,
         int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::cuda::conv2d_weight_grad(
            {
                .shape = shape_of(shape),
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dy = at{dy},
                .x = at{x},
                .dy_channels_last = dy_channels_last,
                .x_channels_last = x_channels_last,
                .dvalues = at{dvalues},
                .dbias = at{dbias},
                .dtype = dtype_of(dtype),
            },
            multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "shape"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dy"_a, "x"_a, "dy_channels_last"_a,
      "x_channels_last"_a, "dvalues"_a, "dbias"_a, "dtype"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
}

void bind_norm_act_on_cuda(py::module_& m) {
  m.def(
      "cuda_norm_act_scratch",
      [](int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int multiprocessors) {
        return spfde::cuda::norm_act_scratch({batch, channels, pixels, channels_last}, multiprocessors);
      },
      release(), "batch"_a, "channels"_a, "pixels"_a, "channels_last"_a, "multiprocessors"_a);
  m.def(
      "cuda_norm_act",
      [](int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int act, bool batch_statistics,
         double eps, double momentum, uintptr_t weight, uintptr_t bias, uintptr_t x, uintptr_t residual, uintptr_t mean,
         uintptr_t var, uintptr_t running_mean, uintptr_t running_var, uintptr_t y, const std::string& dtype,
         int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::cuda::norm_act(
            {
                .shape = {batch, channels, pixels, channels_last},
                .act = spfde::Activation{act},
                .batch_statistics = batch_statistics,
                .eps = eps,
                .momentum = momentum,
                .weight = at{weight},
                .bias = at{bias},
                .x = at{x},
                .residual = at{residual},
                .mean = at{mean},
                .var = at{var},
                .running_mean = at{running_mean},
                .running_var = at{running_var},
                .y = at{y},
                .dtype = dtype_of(dtype),
            },
            multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "batch"_a, "channels"_a, "pixels"_a, "channels_last"_a, "act"_a, "batch_statistics"_a, "eps"_a,
      "momentum"_a, "weight"_a, "bias"_a, "x"_a, "residual"_a, "mean"_a, "var"_a, "running_mean"_a, "running_var"_a,
      "y"_a, "dtype"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
  m.def(
      "cuda_norm_act_grad",
      [](int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int act, bool batch_statistics,
         double eps, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t var, uintptr_t x, uintptr_t y,
         uintptr_t dy, uintptr_t dx, uintptr_t dresidual, uintptr_t dweight, uintptr_t dbias, const std::string& dtype,
         int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::cuda::norm_act_grad(
            {
                .shape = {batch, channels, pixels, channels_last},
                .act = spfde::Activation{act},
                .batch_statistics = batch_statistics,
                .eps = eps,
                .weight = at{weight},
                .bias = at{bias},
                .mean = at{mean},
                .var = at{var},
                .x = at{x},
                .y = at{y},
                .dy = at{dy},
                .dx = at{dx},
                .dresidual = at{dresidual},
                .dweight = at{dweight},
                .dbias = at{dbias},
                .dtype = dtype_of(dtype),
            },
            multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "batch"_a, "channels"_a, "pixels"_a, "channels_last"_a, "act"_a, "batch_statistics"_a, "eps"_a,
      "weight"_a, "bias"_a, "mean"_a, "var"_a, "x"_a, "y"_a, "dy"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a,
      "dtype"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_conv2d_on_cuda(m);
  bind_norm_act_on_cuda(m);
  m.def(
      "cuda_spmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, uintptr_t row_ptr, uintptr_t col,
         uintptr_t values, uintptr_t perm, uintptr_t bias, uintptr_t x, uintptr_t y, const std::string& dtype,
         const End& end, int device, uintptr_t stream) {
        spfde::cuda::spmm(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = positions,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .perm = at{perm},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .dtype = dtype_of(dtype),
                .epilogue = epilogue_of(end),
            },
            {.device = device, .stream = stream});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "bias"_a,
      "x"_a, "y"_a, "dtype"_a, "epilogue"_a, "device"_a, "stream"_a);
  auto sddmm_args = [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t capacity) {
    return spfde::SddmmArgs{.rows = rows, .cols = cols, .batch = batch, .positions = positions, .capacity = capacity};
  };
  m.def(
      "cuda_sddmm_scratch",
      [=](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t capacity, int multiprocessors) {
        return spfde::cuda::sddmm_scratch(sddmm_args(rows, cols, batch, positions, capacity), multiprocessors);
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "capacity"_a, "multiprocessors"_a);
  m.def(
      "cuda_sddmm",
      [=](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t capacity, uintptr_t row_ptr,
          uintptr_t col, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias, const std::string& dtype,
          int multiprocessors, uintptr_t scratch, int device, uintptr_t stream) {
        spfde::SddmmArgs args = sddmm_args(rows, cols, batch, positions, capacity);
        args.row_ptr = at{row_ptr};
        args.col = at{col};
        args.dy = at{dy};
        args.x = at{x};
        args.dvalues = at{dvalues};
        args.dbias = at{dbias};
        args.dtype = dtype_of(dtype);
        spfde::cuda::sddmm(args, multiprocessors, at{scratch}, {.device = device, .stream = stream});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dy"_a, "x"_a,
      "dvalues"_a, "dbias"_a, "dtype"_a, "multiprocessors"_a, "scratch"_a, "device"_a, "stream"_a);
}
#else
void bind_cuda(py::module_&) {}
#endif
