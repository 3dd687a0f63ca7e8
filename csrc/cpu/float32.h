// The arrays of an op's arguments, as the CPU's kernels read them once the front (ops.cpp) has seen their type.
#pragma once

namespace spfde::cpu {

static inline const float* floats(const void* array) { return static_cast<const float*>(array); }
static inline float* floats(void* array) { return static_cast<float*>(array); }

}  // namespace spfde::cpu
