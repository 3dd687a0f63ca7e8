// Scratch memory of the calling thread, kept between calls so that a kernel never pays page faults twice.
#pragma once

#include <cstddef>

namespace spfde {

enum class Scratch {
  source,
  target,
  partial,
  bias,
  offsets,
  segments,
  values,
  source_places,
  target_places,
  blanks,
  count
};

// At least `bytes` bytes, 64-byte aligned, contents undefined; valid until the same thread asks for the same slot.
void* scratch(Scratch slot, size_t bytes);

template <typename T>
static inline T* scratch(Scratch slot, size_t count) {
  return static_cast<T*>(scratch(slot, count * sizeof(T)));
}

// As many of `threads` as have a few microseconds of work each. A pure function, so that sums keep their order.
static inline int worth_threads(int threads, double multiply_adds) {
  constexpr double kWorth = 1 << 16;
  const double most = multiply_adds / kWorth + 1;
  return most < threads ? static_cast<int>(most) : threads;
}

// Throws std::length_error: the problem does not fit the 32-bit offsets of a kernel.
[[noreturn]] void refuse_size(const char* op, long long floats);

}  // namespace spfde
