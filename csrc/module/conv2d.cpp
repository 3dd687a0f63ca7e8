#include "module.h"

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
      "conv2d_gradients",
      [](const cpu::Conv2dPlan& plan, uintptr_t t_row_ptr, uintptr_t t_col, uintptr_t values, uintptr_t perm,
         uintptr_t dy, uintptr_t dx, bool dy_channels_last, bool dx_channels_last, int64_t capacity, uintptr_t row_ptr,
         uintptr_t col, uintptr_t x, bool x_channels_last, uintptr_t dvalues, uintptr_t dbias, int threads) {
        cpu::conv2d_gradients(
            {
                .shape = plan.shape(),
                .row_ptr = at{t_row_ptr},
                .col = at{t_col},
                .perm = at{perm},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
                .dy_channels_last = dy_channels_last,
                .dx_channels_last = dx_channels_last,
            },
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
      release(), "plan"_a, "t_row_ptr"_a, "t_col"_a, "values"_a, "perm"_a, "dy"_a, "dx"_a, "dy_channels_last"_a,
      "dx_channels_last"_a, "capacity"_a, "row_ptr"_a, "col"_a, "x"_a, "x_channels_last"_a, "dvalues"_a, "dbias"_a,
      "threads"_a);
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
