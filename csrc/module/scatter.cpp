#include "cpu/fingerprint.h"
#include "module.h"

void bind_scatter(py::module_& m) {
  m.def(
      "fingerprint",
      [](uintptr_t row_ptr, int64_t rows, uintptr_t col, int64_t capacity, int64_t most) {
        return cpu::fingerprint(at{row_ptr}, rows, at{col}, capacity, most);
      },
      "row_ptr"_a, "rows"_a, "col"_a, "capacity"_a, "most"_a);
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
