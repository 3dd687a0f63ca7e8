// pybind11 bindings: raw pointers in, GIL released, nothing else. Arguments are checked by spfde/kernels.
//
// Arguments are named as the fields they fill (`help(_C.spmm)` lists them). Hot calls pass them by position all the
// same: eleven keywords cost 0.6 microseconds, twice the rest of the call.
#include <dlfcn.h>
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/ops.h"

namespace py = pybind11;
using namespace py::literals;
namespace cpu = spfde::cpu;

namespace {

// An address, as whichever pointer the field wants.
struct at {
  uintptr_t address;
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

std::string path_providing(void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::vector<std::string> names(const std::vector<cpu::Isa>& isas) {
  std::vector<std::string> out;
  for (const cpu::Isa& isa : isas) out.emplace_back(isa.name);
  return out;
}

using release = py::call_guard<py::gil_scoped_release>;

void bind_environment(py::module_& m) {
  m.def("compiled_isas", [] { return names(cpu::compiled_isas()); });
  m.def("isas", [] { return names(cpu::runnable_isas()); });
  m.def("isa", [] { return cpu::isa().name; });
  m.def("cuda_archs", [] { return std::vector<std::string>{SPFDE_CUDA_ARCHS}; });
  m.def("openmp_library", [] { return path_providing(reinterpret_cast<void*>(&omp_get_max_threads)); });
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["openmp"] = _OPENMP;
    info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
    return info;
  });
}

void bind_linear(py::module_& m) {
  m.def(
      "spmm",
      [](int64_t rows, int64_t cols, int64_t batch, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t perm,
         uintptr_t bias, uintptr_t x, uintptr_t y, int threads) {
        cpu::spmm(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = 1,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .perm = at{perm},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "bias"_a, "x"_a, "y"_a,
      "threads"_a);
  m.def(
      "spmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y, int threads) {
        cpu::spmm_blocks(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = 1,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a, "values"_a, "bias"_a,
      "x"_a, "y"_a, "threads"_a);
  m.def(
      "spmm_blocks_input_grad",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t values, uintptr_t dy, uintptr_t dx, int threads) {
        cpu::spmm_blocks_input_grad(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = 1,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a, "values"_a, "dy"_a,
      "dx"_a, "threads"_a);
  m.def(
      "sddmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dy,
         uintptr_t x, uintptr_t dvalues, uintptr_t dbias, int threads) {
        cpu::sddmm(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = 1,
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dy = at{dy},
                .x = at{x},
                .dvalues = at{dvalues},
                .dbias = at{dbias},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dy"_a, "x"_a, "dvalues"_a,
      "dbias"_a, "threads"_a);
  m.def(
      "sddmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, int64_t capacity, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias, int threads) {
        cpu::sddmm_blocks(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = 1,
                .capacity = capacity,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .dy = at{dy},
                .x = at{x},
                .dvalues = at{dvalues},
                .dbias = at{dbias},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "height"_a, "width"_a, "capacity"_a, "unit_ptr"_a, "unit_col"_a, "dy"_a,
      "x"_a, "dvalues"_a, "dbias"_a, "threads"_a);
}

void bind_conv2d(py::module_& m) {
  py::class_<cpu::Conv2dPlan>(m, "Conv2dPlan",
                              "What the convolutions of one shape share; made once, kept, never changed.")
      .def(py::init([](int64_t batch, int64_t in_channels, int64_t in_h, int64_t in_w, int64_t out_channels,
                       int64_t out_h, int64_t out_w, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                       int64_t stride_w, int64_t pad_top, int64_t pad_left, int64_t dilation_h, int64_t dilation_w,
                       int64_t groups) {
             return cpu::Conv2dPlan({.batch = batch,
                                     .in_channels = in_channels,
                                     .in_h = in_h,
                                     .in_w = in_w,
                                     .out_channels = out_channels,
                                     .out_h = out_h,
                                     .out_w = out_w,
                                     .kernel_h = kernel_h,
                                     .kernel_w = kernel_w,
                                     .stride_h = stride_h,
                                     .stride_w = stride_w,
                                     .pad_top = pad_top,
                                     .pad_left = pad_left,
                                     .dilation_h = dilation_h,
                                     .dilation_w = dilation_w,
                                     .groups = groups});
           }),
           py::kw_only(), "batch"_a, "in_channels"_a, "in_h"_a, "in_w"_a, "out_channels"_a, "out_h"_a, "out_w"_a,
           "kernel_h"_a, "kernel_w"_a, "stride_h"_a, "stride_w"_a, "pad_top"_a, "pad_left"_a, "dilation_h"_a,
           "dilation_w"_a, "groups"_a);
  m.def(
      "conv2d",
      [](const cpu::Conv2dPlan& plan, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t bias, uintptr_t x,
         uintptr_t y, bool x_channels_last, bool y_channels_last, int threads) {
        cpu::conv2d(
            {
                .shape = plan.shape(),
                .row_ptr = at{row_ptr},
                .col = at{col},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .x_channels_last = x_channels_last,
                .y_channels_last = y_channels_last,
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "row_ptr"_a, "col"_a, "values"_a, "bias"_a, "x"_a, "y"_a, "x_channels_last"_a,
      "y_channels_last"_a, "threads"_a);
  m.def(
      "conv2d_input_grad",
      [](const cpu::Conv2dPlan& plan, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t perm, uintptr_t dy,
         uintptr_t dx, bool dy_channels_last, bool dx_channels_last, int threads) {
        cpu::conv2d_input_grad(
            {
                .shape = plan.shape(),
                .row_ptr = at{row_ptr},
                .col = at{col},
                .perm = at{perm},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
                .dy_channels_last = dy_channels_last,
                .dx_channels_last = dx_channels_last,
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "dy"_a, "dx"_a, "dy_channels_last"_a,
      "dx_channels_last"_a, "threads"_a);
  m.def(
      "conv2d_weight_grad",
      [](const cpu::Conv2dPlan& plan, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dy, uintptr_t x,
         bool dy_channels_last, bool x_channels_last, uintptr_t dvalues, uintptr_t dbias, int threads) {
        cpu::conv2d_weight_grad(
            {
                .shape = plan.shape(),
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dy = at{dy},
                .x = at{x},
                .dy_channels_last = dy_channels_last,
                .x_channels_last = x_channels_last,
                .dvalues = at{dvalues},
                .dbias = at{dbias},
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dy"_a, "x"_a, "dy_channels_last"_a, "x_channels_last"_a,
      "dvalues"_a, "dbias"_a, "threads"_a);
  m.def(
      "conv2d_blocks",
      [](const cpu::Conv2dPlan& plan, int64_t height, int64_t width, uintptr_t unit_ptr, uintptr_t unit_col,
         uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y, bool x_channels_last, bool y_channels_last,
         int threads) {
        cpu::conv2d_blocks(
            {
                .shape = plan.shape(),
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .x_channels_last = x_channels_last,
                .y_channels_last = y_channels_last,
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a, "values"_a, "bias"_a, "x"_a, "y"_a,
      "x_channels_last"_a, "y_channels_last"_a, "threads"_a);
  m.def(
      "conv2d_blocks_input_grad",
      [](const cpu::Conv2dPlan& plan, int64_t height, int64_t width, uintptr_t unit_ptr, uintptr_t unit_col,
         uintptr_t values, uintptr_t dy, uintptr_t dx, bool dy_channels_last, bool dx_channels_last, int threads) {
        cpu::conv2d_blocks_input_grad(
            {
                .shape = plan.shape(),
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
                .dy_channels_last = dy_channels_last,
                .dx_channels_last = dx_channels_last,
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a, "values"_a, "dy"_a, "dx"_a,
      "dy_channels_last"_a, "dx_channels_last"_a, "threads"_a);
  m.def(
      "conv2d_blocks_weight_grad",
      [](const cpu::Conv2dPlan& plan, int64_t height, int64_t width, int64_t capacity, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t dy, uintptr_t x, bool dy_channels_last, bool x_channels_last, uintptr_t dvalues,
         uintptr_t dbias, int threads) {
        cpu::conv2d_blocks_weight_grad(
            {
                .shape = plan.shape(),
                .capacity = capacity,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .dy = at{dy},
                .x = at{x},
                .dy_channels_last = dy_channels_last,
                .x_channels_last = x_channels_last,
                .dvalues = at{dvalues},
                .dbias = at{dbias},
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "height"_a, "width"_a, "capacity"_a, "unit_ptr"_a, "unit_col"_a, "dy"_a, "x"_a,
      "dy_channels_last"_a, "x_channels_last"_a, "dvalues"_a, "dbias"_a, "threads"_a);
}

void bind_norm_act(py::module_& m) {
  m.def(
      "norm_act",
      [](int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int act, bool batch_statistics,
         double eps, double momentum, uintptr_t weight, uintptr_t bias, uintptr_t x, uintptr_t residual, uintptr_t mean,
         uintptr_t var, uintptr_t running_mean, uintptr_t running_var, uintptr_t y, int threads) {
        cpu::norm_act(
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
            },
            {.threads = threads});
      },
      release(), "batch"_a, "channels"_a, "pixels"_a, "channels_last"_a, "act"_a, "batch_statistics"_a, "eps"_a,
      "momentum"_a, "weight"_a, "bias"_a, "x"_a, "residual"_a, "mean"_a, "var"_a, "running_mean"_a, "running_var"_a,
      "y"_a, "threads"_a);
  m.def(
      "norm_act_grad",
      [](int64_t batch, int64_t channels, int64_t pixels, bool channels_last, int act, bool batch_statistics,
         double eps, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t var, uintptr_t x, uintptr_t y,
         uintptr_t dy, uintptr_t dx, uintptr_t dresidual, uintptr_t dweight, uintptr_t dbias, int threads) {
        cpu::norm_act_grad(
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
            },
            {.threads = threads});
      },
      release(), "batch"_a, "channels"_a, "pixels"_a, "channels_last"_a, "act"_a, "batch_statistics"_a, "eps"_a,
      "weight"_a, "bias"_a, "mean"_a, "var"_a, "x"_a, "y"_a, "dy"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a,
      "threads"_a);
}

void bind_scatter(py::module_& m) {
  m.def(
      "scatter",
      [](int64_t rows, int64_t cols, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t dense, int threads) {
        cpu::scatter(
            {
                .rows = rows,
                .cols = cols,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .values = at{values},
                .dense = at{dense},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "row_ptr"_a, "col"_a, "values"_a, "dense"_a, "threads"_a);
  m.def(
      "gather",
      [](int64_t rows, int64_t cols, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dense,
         uintptr_t values, int threads) {
        cpu::gather(
            {
                .rows = rows,
                .cols = cols,
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dense = at{dense},
                .values = at{values},
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dense"_a, "values"_a, "threads"_a);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  bind_environment(m);
  bind_linear(m);
  bind_conv2d(m);
  bind_norm_act(m);
  bind_scatter(m);
}
