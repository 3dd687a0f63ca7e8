#include "module.h"

// The norm's shape is that of the convolution's output y, which it reads.
void bind_conv2d_norm_act(py::module_& m) {
  m.def(
      "conv2d_norm_act",
      [](const cpu::Conv2dPlan& plan, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t conv_bias,
         uintptr_t x, uintptr_t z, bool channels_last, int act, bool batch_statistics, double eps, double momentum,
         uintptr_t weight, uintptr_t bias, uintptr_t residual, uintptr_t mean, uintptr_t var, uintptr_t running_mean,
         uintptr_t running_var, uintptr_t y, int threads) {
        const spfde::Conv2dShape& s = plan.shape();
        cpu::conv2d_norm_act(
            {
                .shape = s,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .values = at{values},
                .bias = at{conv_bias},
                .x = at{x},
                .y = at{z},
                .x_channels_last = channels_last,
                .y_channels_last = channels_last,
            },
            {
                .shape = {s.batch, s.out_channels, s.out_h * s.out_w, channels_last},
                .act = spfde::Activation{act},
                .batch_statistics = batch_statistics,
                .eps = eps,
                .momentum = momentum,
                .weight = at{weight},
                .bias = at{bias},
                .x = at{z},
                .residual = at{residual},
                .mean = at{mean},
                .var = at{var},
                .running_mean = at{running_mean},
                .running_var = at{running_var},
                .y = at{y},
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "row_ptr"_a, "col"_a, "values"_a, "conv_bias"_a, "x"_a, "z"_a, "channels_last"_a, "act"_a,
      "batch_statistics"_a, "eps"_a, "momentum"_a, "weight"_a, "bias"_a, "residual"_a, "mean"_a, "var"_a,
      "running_mean"_a, "running_var"_a, "y"_a, "threads"_a);
  m.def(
      "conv2d_norm_act_grad",
      [](const cpu::Conv2dPlan& plan, uintptr_t t_row_ptr, uintptr_t t_col, uintptr_t values, uintptr_t perm,
         uintptr_t dx, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t x, bool x_channels_last,
         uintptr_t dvalues, uintptr_t dconv_bias, bool channels_last, int act, bool batch_statistics, double eps,
         uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t var, uintptr_t z, uintptr_t y, uintptr_t dy,
         uintptr_t dresidual, uintptr_t dweight, uintptr_t dbias, int threads) {
        const spfde::Conv2dShape& s = plan.shape();
        return cpu::conv2d_norm_act_grad(
            {
                .shape = {s.batch, s.out_channels, s.out_h * s.out_w, channels_last},
                .act = spfde::Activation{act},
                .batch_statistics = batch_statistics,
                .eps = eps,
                .weight = at{weight},
                .bias = at{bias},
                .mean = at{mean},
                .var = at{var},
                .x = at{z},
                .y = at{y},
                .dy = at{dy},
                .dx = nullptr,
                .dresidual = at{dresidual},
                .dweight = at{dweight},
                .dbias = at{dbias},
            },
            {
                .shape = s,
                .row_ptr = at{t_row_ptr},
                .col = at{t_col},
                .perm = at{perm},
                .values = at{values},
                .dy = nullptr,
                .dx = at{dx},
                .dy_channels_last = channels_last,
                .dx_channels_last = channels_last,
            },
            {
                .shape = s,
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dy = nullptr,
                .x = at{x},
                .dy_channels_last = channels_last,
                .x_channels_last = x_channels_last,
                .dvalues = at{dvalues},
                .dbias = at{dconv_bias},
            },
            plan, {.threads = threads});
      },
      release(), "plan"_a, "t_row_ptr"_a, "t_col"_a, "values"_a, "perm"_a, "dx"_a, "capacity"_a, "row_ptr"_a, "col"_a,
      "x"_a, "x_channels_last"_a, "dvalues"_a, "dconv_bias"_a, "channels_last"_a, "act"_a, "batch_statistics"_a,
      "eps"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a, "z"_a, "y"_a, "dy"_a, "dresidual"_a, "dweight"_a, "dbias"_a,
      "threads"_a);
}
