// What csrc/cuda uses of CUDA's header of this name.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 h) {
  const uint32_t word = static_cast<uint32_t>(h.bits) << 16;
  float f;
  std::memcpy(&f, &word, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t word;
  std::memcpy(&word, &f, 4);
  if (std::isnan(f)) return {0x7fff};
  word += 0x7fff + (word >> 16 & 1);  // to nearest, ties to even
  return {static_cast<uint16_t>(word >> 16)};
}
