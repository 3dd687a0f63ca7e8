// The index of a weight stored in blocks of `height` rows x `width` input channels.
//
// A *unit* is one column of a block: `height` weights that share one input. Units are listed block by block, blocks
// ascending within a block row. Rows of the last block row that do not exist are ignored on the output side and count
// as zero on the gradient's. The input gradient reads the same index: it needs no transpose.
#pragma once

#include <cstdint>

namespace spfde {

struct BlockIndex {
  int64_t height, width;
  const int32_t* unit_ptr;  // [ceil(rows / height) + 1] ascending, unit_ptr[0] == 0
  const int32_t* unit_col;  // [units] column of each unit
};

}  // namespace spfde
