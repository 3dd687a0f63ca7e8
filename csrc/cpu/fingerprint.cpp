#include "cpu/fingerprint.h"

namespace spfde::cpu {
namespace {

// Fletcher's checksum: two chains of additions, one entry a cycle.
struct Sum {
  uint64_t plain = 1, ordered = 0;

  void add(const int32_t* data, int64_t n, int64_t step) {
    for (int64_t i = 0; i < n; i += step) {
      plain += static_cast<uint32_t>(data[i]);
      ordered += plain;
    }
  }
};

}  // namespace

uint64_t fingerprint(const int32_t* row_ptr, int64_t rows, const int32_t* col, int64_t capacity, int64_t most) {
  Sum sum;
  sum.add(row_ptr, rows + 1, 1);
  sum.add(col, capacity, 1 + capacity / most);
  return sum.ordered ^ (sum.plain << 32 | sum.plain >> 32);
}

}  // namespace spfde::cpu
