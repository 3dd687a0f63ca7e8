// pybind11 bindings: raw pointers in, GIL released, nothing else. Arguments are checked by spfde/kernels.
#include <dlfcn.h>
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "spfde/blocks.h"
#include "spfde/conv2d.h"
#include "spfde/fingerprint.h"
#include "spfde/isa.h"
#include "spfde/masked.h"
#include "spfde/norm.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::string path_providing(void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

spfde::Conv2dShape conv2d_shape(const std::array<int64_t, 16>& s) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]};
}

spfde::BlockIndex block_index(int64_t height, int64_t width, uintptr_t unit_ptr, uintptr_t unit_col) {
  return {height, width, pointer<int32_t>(unit_ptr), pointer<int32_t>(unit_col)};
}
spfde::NormShape norm_shape(const std::array<int64_t, 4>& s) { return {s[0], s[1], s[2], s[3] != 0}; }

std::vector<std::string> names(const std::vector<spfde::Isa>& isas) {
  std::vector<std::string> out;
  for (spfde::Isa isa : isas) out.emplace_back(spfde::isa_name(isa));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("compiled_isas", [] { return names(spfde::compiled_isas()); });
  m.def("isas", [] { return names(spfde::runnable_isas()); });
  m.def("isa", [] { return spfde::isa_name(spfde::isa()); });
  m.def("cuda_archs", [] { return std::vector<std::string>{}; });
  m.def("openmp_library", [] { return path_providing(reinterpret_cast<void*>(&omp_get_max_threads)); });
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["openmp"] = _OPENMP;
    info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
    return info;
  });

  m.def(
      "spmm",
      [](int64_t rows, int64_t cols, int64_t batch, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t perm,
         uintptr_t bias, uintptr_t x, uintptr_t y, int threads) {
        spfde::spmm({rows, cols, batch, 1, pointer<int32_t>(row_ptr), pointer<int32_t>(col), pointer<float>(values),
                     pointer<int32_t>(perm), pointer<float>(bias), pointer<float>(x), pointer<float>(y), threads});
      },
      release());
  m.def(
      "sddmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dy,
         uintptr_t x, uintptr_t dvalues, uintptr_t dbias, int threads) {
        spfde::sddmm({rows, cols, batch, 1, capacity, pointer<int32_t>(row_ptr), pointer<int32_t>(col),
                      pointer<float>(dy), pointer<float>(x), pointer<float>(dvalues), pointer<float>(dbias), threads});
      },
      release());
  m.def(
      "conv2d",
      [](const std::array<int64_t, 16>& shape, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t bias,
         uintptr_t x, uintptr_t y, bool x_channels_last, bool y_channels_last, int threads) {
        spfde::conv2d({conv2d_shape(shape), pointer<int32_t>(row_ptr), pointer<int32_t>(col), pointer<float>(values),
                       pointer<float>(bias), pointer<float>(x), pointer<float>(y), x_channels_last, y_channels_last,
                       threads});
      },
      release());
  m.def(
      "conv2d_input_grad",
      [](const std::array<int64_t, 16>& shape, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t perm,
         uintptr_t dy, uintptr_t dx, bool dy_channels_last, bool dx_channels_last, int threads) {
        spfde::conv2d_input_grad({conv2d_shape(shape), pointer<int32_t>(row_ptr), pointer<int32_t>(col),
                                  pointer<float>(values), pointer<int32_t>(perm), pointer<float>(dy),
                                  pointer<float>(dx), dy_channels_last, dx_channels_last, threads});
      },
      release());
  m.def(
      "conv2d_weight_grad",
      [](const std::array<int64_t, 16>& shape, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t x,
         uintptr_t dy, bool x_channels_last, bool dy_channels_last, uintptr_t dvalues, uintptr_t dbias, int threads) {
        spfde::conv2d_weight_grad({conv2d_shape(shape), pointer<int32_t>(row_ptr), pointer<int32_t>(col),
                                   pointer<float>(x), pointer<float>(dy), x_channels_last, dy_channels_last, capacity,
                                   pointer<float>(dvalues), pointer<float>(dbias), threads});
      },
      release());

  m.def(
      "spmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y, int threads) {
        spfde::spmm_blocks({rows, cols, batch, 1, block_index(height, width, unit_ptr, unit_col),
                            pointer<float>(values), pointer<float>(bias), pointer<float>(x), pointer<float>(y),
                            threads});
      },
      release());
  m.def(
      "spmm_blocks_input_grad",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t values, uintptr_t dy, uintptr_t dx, int threads) {
        spfde::spmm_blocks_input_grad({rows, cols, batch, 1, block_index(height, width, unit_ptr, unit_col),
                                       pointer<float>(values), pointer<float>(dy), pointer<float>(dx), threads});
      },
      release());
  m.def(
      "sddmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t height, int64_t width, int64_t capacity, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias, int threads) {
        spfde::sddmm_blocks({rows, cols, batch, 1, block_index(height, width, unit_ptr, unit_col), capacity,
                             pointer<float>(dy), pointer<float>(x), pointer<float>(dvalues), pointer<float>(dbias),
                             threads});
      },
      release());
  m.def(
      "conv2d_blocks",
      [](const std::array<int64_t, 16>& shape, int64_t height, int64_t width, uintptr_t unit_ptr, uintptr_t unit_col,
         uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y, bool x_channels_last, bool y_channels_last,
         int threads) {
        spfde::conv2d_blocks({conv2d_shape(shape), block_index(height, width, unit_ptr, unit_col),
                              pointer<float>(values), pointer<float>(bias), pointer<float>(x), pointer<float>(y),
                              x_channels_last, y_channels_last, threads});
      },
      release());
  m.def(
      "conv2d_blocks_input_grad",
      [](const std::array<int64_t, 16>& shape, int64_t height, int64_t width, uintptr_t unit_ptr, uintptr_t unit_col,
         uintptr_t values, uintptr_t dy, uintptr_t dx, bool dy_channels_last, bool dx_channels_last, int threads) {
        spfde::conv2d_blocks_input_grad({conv2d_shape(shape), block_index(height, width, unit_ptr, unit_col),
                                         pointer<float>(values), pointer<float>(dy), pointer<float>(dx),
                                         dy_channels_last, dx_channels_last, threads});
      },
      release());
  m.def(
      "conv2d_blocks_weight_grad",
      [](const std::array<int64_t, 16>& shape, int64_t height, int64_t width, int64_t capacity, uintptr_t unit_ptr,
         uintptr_t unit_col, uintptr_t x, uintptr_t dy, bool x_channels_last, bool dy_channels_last, uintptr_t dvalues,
         uintptr_t dbias, int threads) {
        spfde::conv2d_blocks_weight_grad({conv2d_shape(shape), block_index(height, width, unit_ptr, unit_col),
                                          pointer<float>(x), pointer<float>(dy), x_channels_last, dy_channels_last,
                                          capacity, pointer<float>(dvalues), pointer<float>(dbias), threads});
      },
      release());

  m.def(
      "norm_act",
      [](const std::array<int64_t, 4>& shape, int act, bool batch_statistics, double eps, uintptr_t weight,
         uintptr_t bias, uintptr_t x, uintptr_t residual, uintptr_t mean, uintptr_t var, uintptr_t running_mean,
         uintptr_t running_var, double momentum, uintptr_t y, int threads) {
        spfde::norm_act({norm_shape(shape), static_cast<spfde::Activation>(act), batch_statistics, eps,
                         pointer<float>(weight), pointer<float>(bias), pointer<float>(x), pointer<float>(residual),
                         pointer<float>(mean), pointer<float>(var), pointer<float>(running_mean),
                         pointer<float>(running_var), momentum, pointer<float>(y), threads});
      },
      release());
  m.def(
      "norm_act_grad",
      [](const std::array<int64_t, 4>& shape, int act, bool batch_statistics, double eps, uintptr_t weight,
         uintptr_t bias, uintptr_t mean, uintptr_t var, uintptr_t x, uintptr_t y, uintptr_t dy, uintptr_t dx,
         uintptr_t dresidual, uintptr_t dweight, uintptr_t dbias, int threads) {
        spfde::norm_act_grad({norm_shape(shape), static_cast<spfde::Activation>(act), batch_statistics, eps,
                              pointer<float>(weight), pointer<float>(bias), pointer<float>(mean), pointer<float>(var),
                              pointer<float>(x), pointer<float>(y), pointer<float>(dy), pointer<float>(dx),
                              pointer<float>(dresidual), pointer<float>(dweight), pointer<float>(dbias), threads});
      },
      release());

  m.def("fingerprint", [](uintptr_t row_ptr, int64_t rows, uintptr_t col, int64_t capacity, int64_t most) {
    return spfde::fingerprint(pointer<int32_t>(row_ptr), rows, pointer<int32_t>(col), capacity, most);
  });
  m.def(
      "scatter_values",
      [](int64_t rows, int64_t cols, uintptr_t row_ptr, uintptr_t col, uintptr_t values, uintptr_t dense, int threads) {
        spfde::scatter_values(rows, cols, pointer<int32_t>(row_ptr), pointer<int32_t>(col), pointer<float>(values),
                              pointer<float>(dense), threads);
      },
      release());
  m.def(
      "gather_values",
      [](int64_t rows, int64_t cols, int64_t capacity, uintptr_t row_ptr, uintptr_t col, uintptr_t dense,
         uintptr_t values, int threads) {
        spfde::gather_values(rows, cols, capacity, pointer<int32_t>(row_ptr), pointer<int32_t>(col),
                             pointer<float>(dense), pointer<float>(values), threads);
      },
      release());
}
