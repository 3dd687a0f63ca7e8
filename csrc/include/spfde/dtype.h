// The type of the elements behind an untyped pointer. An op's header says which of its arrays have it; the rest are
// float32. Kernels of the CPU take float32 alone.
#pragma once

namespace spfde {

enum class DType { float32, float16, bfloat16 };

}  // namespace spfde
