#include "module.h"

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
