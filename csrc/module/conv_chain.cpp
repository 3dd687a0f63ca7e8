#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "module.h"

namespace {

// Values and steps of a chain, made once and kept; memory is named at each call. Values by channels, height, width.
struct Chain {
  std::vector<spfde::ChainValue> values;
  std::vector<spfde::ChainStep> steps;
};

typedef std::vector<std::tuple<int64_t, uintptr_t, bool>> Memory;  // value, address, channels_last

}  // namespace

void bind_conv_chain(py::module_& m) {
  py::class_<Chain>(m, "ConvChain", "Convolutions one behind the other; made once, kept, and run by conv_chain.")
      .def(py::init([](const std::vector<std::array<int64_t, 3>>& values) {
             Chain chain;
             for (const auto& [channels, height, width] : values)
               chain.values.push_back({.channels = channels, .height = height, .width = width});
             return chain;
           }),
           "values"_a)
      .def(
          "add",
          [](Chain& chain, int64_t source, int64_t target, int64_t residual, const std::array<int64_t, 2>& kernel,
             const std::array<int64_t, 2>& stride, const std::array<int64_t, 2>& pad,
             const std::array<int64_t, 2>& dilation, int64_t groups, uintptr_t row_ptr, uintptr_t col, uintptr_t values,
             uintptr_t bias, int act) {
            chain.steps.push_back({.source = source,
                                   .target = target,
                                   .residual = residual,
                                   .kernel_h = kernel[0],
                                   .kernel_w = kernel[1],
                                   .stride_h = stride[0],
                                   .stride_w = stride[1],
                                   .pad_top = pad[0],
                                   .pad_left = pad[1],
                                   .dilation_h = dilation[0],
                                   .dilation_w = dilation[1],
                                   .groups = groups,
                                   .row_ptr = at{row_ptr},
                                   .col = at{col},
                                   .values = at{values},
                                   .bias = at{bias},
                                   .act = spfde::Activation{act}});
          },
          py::kw_only(), "source"_a, "target"_a, "residual"_a, "kernel"_a, "stride"_a, "pad"_a, "dilation"_a,
          "groups"_a, "row_ptr"_a, "col"_a, "values"_a, "bias"_a, "act"_a);
  m.def(
      "conv_chain",
      [](const Chain& chain, int64_t batch, const Memory& inputs, const Memory& outputs, int threads) {
        std::vector<spfde::ChainValue> values = chain.values;
        for (const auto& [value, address, channels_last] : inputs) {
          values.at(value).input = at{address};
          values.at(value).channels_last = channels_last;
        }
        for (const auto& [value, address, channels_last] : outputs) {
          values.at(value).output = at{address};
          values.at(value).channels_last = channels_last;
        }
        cpu::conv_chain({.batch = batch,
                         .values = values.data(),
                         .value_count = static_cast<int64_t>(values.size()),
                         .steps = chain.steps.data(),
                         .step_count = static_cast<int64_t>(chain.steps.size())},
                        {.threads = threads});
      },
      release(), "chain"_a, "batch"_a, "inputs"_a, "outputs"_a, "threads"_a);
}
