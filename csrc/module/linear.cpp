#include "cpu/panel_order.h"
#include "module.h"

namespace {

// The order of an index, with room for so many weights; start == 0: there is none.
struct Order {
  spfde::PanelOrder order;
  const spfde::PanelOrder* given;

  Order(int64_t rows, int64_t cols, int64_t height, int64_t room, uintptr_t start, uintptr_t visits, uintptr_t offset,
        uintptr_t slot)
      : order{cpu::panel_cut((rows + height - 1) / height, cols, room, height), at{start}, at{visits}, at{offset},
              at{slot}},
        given(start == 0 ? nullptr : &order) {}
};

void bind_panel_order(py::module_& m) {
  m.def(
      "panel_cut",
      [](int64_t rows, int64_t cols, int64_t room, int64_t height) {
        const spfde::PanelCut cut = cpu::panel_cut(rows, cols, room, height);
        return std::pair(cut.shares, cut.panels);
      },
      "rows"_a, "cols"_a, "room"_a, "height"_a);
  m.def(
      "panel_order",
      [](int64_t rows, int64_t cols, int64_t room, int64_t height, uintptr_t row_ptr, uintptr_t col, uintptr_t perm,
         uintptr_t start, uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        cpu::write_panel_order(cpu::panel_cut(rows, cols, room, height), rows, at{row_ptr}, at{col}, at{perm},
                               {at{start}, at{visits}, at{offset}, at{slot}}, threads);
      },
      release(), "rows"_a, "cols"_a, "room"_a, "height"_a, "row_ptr"_a, "col"_a, "perm"_a, "start"_a, "visits"_a,
      "offset"_a, "slot"_a, "threads"_a);
}

}  // namespace

void bind_linear(py::module_& m) {
  bind_panel_order(m);
  m.def(
      "spmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, uintptr_t row_ptr, uintptr_t col,
         uintptr_t values, uintptr_t perm, uintptr_t bias, uintptr_t x, uintptr_t y, int64_t room, uintptr_t start,
         uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        const Order order(rows, cols, 1, room, start, visits, offset, slot);
        cpu::spmm(
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
                .order = order.given,
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "row_ptr"_a, "col"_a, "values"_a, "perm"_a, "bias"_a,
      "x"_a, "y"_a, "room"_a, "start"_a, "visits"_a, "offset"_a, "slot"_a, "threads"_a);
  m.def(
      "spmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t height, int64_t width,
         uintptr_t unit_ptr, uintptr_t unit_col, uintptr_t values, uintptr_t bias, uintptr_t x, uintptr_t y,
         int64_t room, uintptr_t start, uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        const Order order(rows, cols, height, room, start, visits, offset, slot);
        cpu::spmm_blocks(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = positions,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .bias = at{bias},
                .x = at{x},
                .y = at{y},
                .order = order.given,
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a,
      "values"_a, "bias"_a, "x"_a, "y"_a, "room"_a, "start"_a, "visits"_a, "offset"_a, "slot"_a, "threads"_a);
  m.def(
      "spmm_blocks_input_grad",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t height, int64_t width,
         uintptr_t unit_ptr, uintptr_t unit_col, uintptr_t values, uintptr_t dy, uintptr_t dx, int64_t room,
         uintptr_t start, uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        const Order order(rows, cols, height, room, start, visits, offset, slot);
        cpu::spmm_blocks_input_grad(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = positions,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .values = at{values},
                .dy = at{dy},
                .dx = at{dx},
                .order = order.given,
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "height"_a, "width"_a, "unit_ptr"_a, "unit_col"_a,
      "values"_a, "dy"_a, "dx"_a, "room"_a, "start"_a, "visits"_a, "offset"_a, "slot"_a, "threads"_a);
  m.def(
      "sddmm",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t capacity, uintptr_t row_ptr,
         uintptr_t col, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias, int64_t room, uintptr_t start,
         uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        const Order order(rows, cols, 1, room, start, visits, offset, slot);
        cpu::sddmm(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = positions,
                .capacity = capacity,
                .row_ptr = at{row_ptr},
                .col = at{col},
                .dy = at{dy},
                .x = at{x},
                .dvalues = at{dvalues},
                .dbias = at{dbias},
                .order = order.given,
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "capacity"_a, "row_ptr"_a, "col"_a, "dy"_a, "x"_a,
      "dvalues"_a, "dbias"_a, "room"_a, "start"_a, "visits"_a, "offset"_a, "slot"_a, "threads"_a);
  m.def(
      "sddmm_blocks",
      [](int64_t rows, int64_t cols, int64_t batch, int64_t positions, int64_t height, int64_t width, int64_t capacity,
         uintptr_t unit_ptr, uintptr_t unit_col, uintptr_t dy, uintptr_t x, uintptr_t dvalues, uintptr_t dbias,
         int64_t room, uintptr_t start, uintptr_t visits, uintptr_t offset, uintptr_t slot, int threads) {
        const Order order(rows, cols, height, room, start, visits, offset, slot);
        cpu::sddmm_blocks(
            {
                .rows = rows,
                .cols = cols,
                .batch = batch,
                .positions = positions,
                .capacity = capacity,
                .index = {height, width, at{unit_ptr}, at{unit_col}},
                .dy = at{dy},
                .x = at{x},
                .dvalues = at{dvalues},
                .dbias = at{dbias},
                .order = order.given,
            },
            {.threads = threads});
      },
      release(), "rows"_a, "cols"_a, "batch"_a, "positions"_a, "height"_a, "width"_a, "capacity"_a, "unit_ptr"_a,
      "unit_col"_a, "dy"_a, "x"_a, "dvalues"_a, "dbias"_a, "room"_a, "start"_a, "visits"_a, "offset"_a, "slot"_a,
      "threads"_a);
}
