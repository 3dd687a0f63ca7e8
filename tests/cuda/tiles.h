// Weights in blocks, and their tiles in both directions, as spfde/sparse/tiles.py makes them.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <vector>

#include "check.h"
#include "spfde/tiles.h"

namespace test {

struct StoredBlock {
  int64_t row, col, slot;
};

// Tiles of blocks in a grid of `rows` block rows; items of at most `longest` entries, so that longer groups are cut.
struct TilesOf {
  int64_t together;
  std::vector<int32_t> entry, work, split;

  TilesOf(std::vector<StoredBlock> stored, int64_t rows, int64_t together, int64_t stack, int64_t longest)
      : together(together) {
    std::sort(stored.begin(), stored.end(), [&](const StoredBlock& a, const StoredBlock& b) {
      return std::tuple(a.row / together, a.col, a.row) < std::tuple(b.row / together, b.col, b.row);
    });
    size_t next = 0;
    int32_t place = 0;
    for (int64_t group = 0; group < (rows + together - 1) / together; ++group) {
      const int64_t first = count();
      for (; next < stored.size() && stored[next].row / together == group; ++next) {
        const StoredBlock& block = stored[next];
        if (count() == first || entry[(count() - 1) * (2 + together)] != block.col) add(block.col, group);
        entry[(count() - 1) * (2 + together) + 2 + block.row % together] = static_cast<int32_t>(block.slot);
      }
      const int64_t last = count(), items = std::max<int64_t>(1, (last - first + longest - 1) / longest);
      if (items > 1) append(split, {group, place, place + items});
      for (int64_t i = 0; i < items; ++i)
        append(work, {group, first + i * longest, std::min(last, first + (i + 1) * longest), items > 1 ? place++ : -1});
      while (count() == first || (count() - first) % stack) add(0, group);
    }
    append(work, {-1, 0, 0, -1});  // what a smaller capacity leaves over
    while (place > 2 * static_cast<int64_t>(split.size()) / 3) append(split, {-1, 0, 0});
    for (int64_t i = 0; i < stack; ++i) add(0, -1);
    entry.shrink_to_fit(), work.shrink_to_fit(), split.shrink_to_fit();
  }

  int64_t count() const { return static_cast<int64_t>(entry.size()) / (2 + together); }
  spfde::Tiles tiles() const {
    return {together,
            entry.data(),
            count(),
            work.data(),
            static_cast<int64_t>(work.size()) / 4,
            split.data(),
            static_cast<int64_t>(split.size()) / 3};
  }

 private:
  void add(int64_t col, int64_t group) {
    entry.push_back(static_cast<int32_t>(col));
    entry.push_back(static_cast<int32_t>(group));
    entry.insert(entry.end(), together, -1);
  }
  static void append(std::vector<int32_t>& to, std::initializer_list<int64_t> values) {
    for (int64_t value : values) to.push_back(static_cast<int32_t>(value));
  }
};

}  // namespace test
