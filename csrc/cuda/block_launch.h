// What the launches of products by blocks share.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "cuda/launch.h"

namespace spfde::cuda::blocks {

// Calls f with a zero of the arrays' type, and whether float32 must not be rounded to TF32, as a constant.
template <typename F>
void for_precision(DType dtype, bool tf32, F f) {
  for_dtype(dtype, [&](auto zero) {
    if constexpr (std::is_same_v<decltype(zero), float>) {
      if (!tf32) return f(zero, std::true_type{});
    }
    f(zero, std::false_type{});
  });
}

// Calls f with the number of rows that a block of threads computes, as a constant.
template <typename F>
void for_outputs(int64_t outputs, F f) {
  switch (outputs) {
    case 16:
      return f(std::integral_constant<int, 16>{});
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
  }
  throw std::invalid_argument("expected 16, 32, 64 or 128 rows that are computed together, got " +
                              std::to_string(outputs) + "; try blocks with such sides");
}

constexpr int bits(int64_t power) {
  int log = 0;
  while (power > 1) power /= 2, ++log;
  return log;
}

template <typename... P>
bool aligned(size_t bytes, P... arrays) {
  return (reinterpret_cast<uintptr_t>(arrays) | ...) % bytes == 0;
}

// How many blocks of threads there are, on the one axis that takes so many.
inline unsigned grid(int64_t works, int64_t tiles, const std::string& problem) {
  if (works * tiles >= int64_t{1} << 31)
    throw std::invalid_argument("expected fewer than 2^31 blocks of threads, got " + problem + "; try a smaller batch");
  return static_cast<unsigned>(works * tiles);
}

}  // namespace spfde::cuda::blocks
