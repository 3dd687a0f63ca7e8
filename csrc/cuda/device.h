// What kernels share: the types that are stored, warps, shared memory.
//
// The same source is compiled by nvcc for a GPU and by a C++ compiler for the emulator of tests/cuda, whose headers
// stand in for CUDA's. What only a GPU has is wrapped here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace spfde::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Four or two consecutive elements, loaded and stored as one where they are aligned to their size.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T at[2];
};

// The dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return emulator::shared_memory();
#endif
}

// The sum over the lanes of a warp, in every lane: always in the same order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int with = kWarp / 2; with > 0; with /= 2) value += __shfl_xor_sync(kAll, value, with);
  return value;
}

// First place in [first, last) of an ascending array at which its element is not below `bound`.
__device__ __forceinline__ int32_t lower_bound(const int32_t* array, int32_t first, int32_t last, int64_t bound) {
  while (first < last) {
    const int32_t middle = first + (last - first) / 2;
    if (array[middle] < bound)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

}  // namespace spfde::cuda
