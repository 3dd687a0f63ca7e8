// Whether an index is still the one a plan was made from, although whoever wrote it left no trace.
#pragma once

#include <cstdint>

namespace spfde::cpu {

// A checksum of row_ptr [rows + 1] and col [capacity] that depends on the order: equal for equal indices, and almost
// never for others. About `most` entries of col are read, spread evenly.
uint64_t fingerprint(const int32_t* row_ptr, int64_t rows, const int32_t* col, int64_t capacity, int64_t most);

}  // namespace spfde::cpu
