#include "module.h"

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
