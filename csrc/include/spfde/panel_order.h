// The order in which a kernel visits stored weights: rows are cut into shares, columns into panels, and in every
// share's panel the rows come by how many weights they have there, most first. No loop over a row's weights then ends
// where a branch predictor cannot know, and whatever belongs to a weight is read from front to back.
//
// For blocks "row" is a block row and "weight" a unit (see block_index.h). A row's sum keeps its order whatever the
// shares: panel after panel, and ascending columns within one.
#pragma once

#include <cstdint>

namespace spfde {

struct PanelCut {
  int64_t share, shares;  // rows of a share, at most 65535
  int64_t width, panels;  // columns of a panel, at most 65535
};

struct PanelOrder {
  PanelCut cut;
  const int32_t* start;   // [shares * panels + 1] first weight of every share's panel; panels of a share in turn
  const int32_t* visits;  // [panels * rows] row within the share + 65536 * weights; as many for a panel as rows
  const int16_t* offset;  // [nnz] column within the panel, unsigned
  const int32_t* slot;    // [nnz] which stored weight it is
};

}  // namespace spfde
