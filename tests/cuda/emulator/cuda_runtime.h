// What csrc/cuda uses of CUDA's header of this name, on the emulator.
#pragma once

#include <algorithm>
#include <cstring>

#include "emulator.h"
#include "tensor_cores.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::max;
using std::min;

inline void __syncthreads() { emulator::synchronize_block(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_collective(emulator::Collective::sync, mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  return emulator::warp_collective(emulator::Collective::ballot, mask, vote, 0);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  static_assert(sizeof(T) == 4);
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = emulator::warp_collective(emulator::Collective::shuffle, mask, word, from);
  std::memcpy(&value, &word, 4);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return __shfl_sync(mask, value, emulator::lane() ^ with);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

struct alignas(8) uint2 {
  unsigned x, y;
};

// ---- the host's side: one device, on which everything is done when a call returns ----

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid configuration argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !threads || threads > 1024 || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  auto call = [&] { kernel(P(args)...); };
  emulator::launch(
      grid, block, config->dynamicSmemBytes, [](void* given) { (*static_cast<decltype(call)*>(given))(); }, &call);
  return cudaSuccess;
}
