// Makes the order of include/spfde/panel_order.h out of an index.
#pragma once

#include "cpu/workspace.h"
#include "spfde/panel_order.h"

namespace spfde::cpu {

// How the products of a linear layer cut `rows` x `cols` with room for `room` weights; the shape of an order depends on
// these alone, so that another topology fits where it was. height: of a block, whose rows and units are then counted.
PanelCut panel_cut(int64_t rows, int64_t cols, int64_t room, int64_t height);

// The arrays of a PanelOrder, to be written.
struct PanelArrays {
  int32_t *start, *visits;
  int16_t* offset;
  int32_t* slot;
};

// row_ptr, col, perm: as in spmm.h, but columns may repeat. Throws std::bad_alloc.
void write_panel_order(const PanelCut& cut, int64_t rows, const int32_t* row_ptr, const int32_t* col,
                       const int32_t* perm, const PanelArrays& out, int threads);

// The same in scratch memory.
PanelOrder make_panel_order(const PanelCut& cut, int64_t rows, const int32_t* row_ptr, const int32_t* col,
                            const int32_t* perm, int threads, Scratch& scratch);

}  // namespace spfde::cpu
