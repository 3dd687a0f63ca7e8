// The index that GPU kernels walk, Triton's today: work of about equal length, in shapes that depend on the capacity
// alone. spfde/sparse/tiles.py builds it, for the weight and once more for its transpose.
//
// A *group* is `together` consecutive block rows. Its entries are adjacent, their columns ascending, and fill whole
// stacks of max(1, 128 / block width) entries, at least one stack. Entries that only fill up have slots -1; behind the
// last group's entries `group` is -1 too.
#pragma once

#include <cstdint>

namespace spfde {

struct Tiles {
  int64_t together;

  // [entries, 2 + together]: block column, group, then for each of the group's rows the block's slot in `values`, -1
  // where that row stores none.
  const int32_t* entry;
  int64_t entries;

  // [works, 4]: group (-1: nothing to do), first entry, past the last entry, and the place in scratch memory of the
  // sum, -1 where the item is all of its group. Longest first.
  const int32_t* work;
  int64_t works;

  // [splits, 3]: group that was cut into several items (-1: none), its first place in scratch memory, past its last.
  // There are at most 2 * splits places.
  const int32_t* split;
  int64_t splits;
};

}  // namespace spfde
