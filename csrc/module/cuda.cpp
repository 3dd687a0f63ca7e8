// The CUDA kernels, where they were built.
#include "module.h"

#ifdef SPFDE_CUDA
#include <string>

#include "cuda/ops.h"

namespace {

spfde::DType dtype_of(const std::string& name) {
  return name == "float32" ? spfde::DType::float32 : name == "float16" ? spfde::DType::float16 : spfde::DType::bfloat16;
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def(
      "cuda_spmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, uintptr_t row_ptr, uintptr_t col,
         uintptr_t values, uintptr_t perm, uintptr_t bias, uintptr_t x, uintptr_t y, const std::string& dtype,
         int device, uintptr_t stream) {
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
            },
            {.device = device, .stream = stream});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "bias"_a,
      "x"_a, "y"_a, "dtype"_a, "device"_a, "stream"_a);
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
