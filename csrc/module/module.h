// What the bindings share: raw pointers in, GIL released, nothing else. Arguments are checked by spfde/kernels.
//
// Arguments are named as the fields they fill (`help(_C.spmm)` lists them). Hot calls pass them by position all the
// same: eleven keywords cost 0.6 microseconds, twice the rest of the call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/ops.h"

namespace py = pybind11;
namespace cpu = spfde::cpu;
using namespace py::literals;

// An address, as whichever pointer the field wants.
struct at {
  uintptr_t address;
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

using release = py::call_guard<py::gil_scoped_release>;

void bind_linear(py::module_& m);
void bind_conv2d(py::module_& m);
void bind_conv2d_norm_act(py::module_& m);
void bind_conv_chain(py::module_& m);
void bind_norm_act(py::module_& m);
void bind_scatter(py::module_& m);
void bind_cuda(py::module_& m);
void bind_cuda_blocks(py::module_& m);
