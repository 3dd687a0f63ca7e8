// Launches a kernel on the stream and device of an Exec; what CUDA says against it names the op and its shape.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/places.h"
#include "spfde/dtype.h"
#include "spfde/exec.h"

namespace spfde::cuda {

// The device of the Exec is the current one as long as this lives.
class OnDevice {
 public:
  explicit OnDevice(const Exec& exec) : device_(exec.device) {
    cudaGetDevice(&before_);
    if (before_ != device_) status_ = cudaSetDevice(device_);
  }
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t status() const { return status_; }

 private:
  int before_ = -1, device_;
  cudaError_t status_ = cudaSuccess;
};

struct Shape {
  dim3 grid, block;
  size_t shared = 0;  // bytes of dynamic shared memory
};

// problem: the op and its sizes, as a message names them.
template <typename... P, typename... A>
void launch(const std::string& problem, const Exec& exec, const Shape& shape, void (*kernel)(P...), A... args) {
  const OnDevice current(exec);
  cudaError_t status = current.status();
  if (status == cudaSuccess && shape.shared > (48 << 10))  // more than that must be asked for
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared;
    config.stream = reinterpret_cast<cudaStream_t>(exec.stream);
    status = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
  }
  if (status != cudaSuccess) {
    cudaGetLastError();  // torch's next call must not find it
    throw std::runtime_error(
        "expected to launch " + problem + " on cuda:" + std::to_string(exec.device) +
        ", got: " + cudaGetErrorString(status) +
        "; try `spfde env`, which lists the architectures that were built, or layer.kernel = 'dense'");
  }
}

// Calls f with a zero of the type that the arrays have.
template <typename F>
void for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float16:
      return f(__half{});
    case DType::bfloat16:
      return f(__nv_bfloat16{});
  }
}

inline std::string sizes(int64_t rows, int64_t cols, int64_t batch) {
  return "[" + std::to_string(rows) + " x " + std::to_string(cols) + "], batch " + std::to_string(batch);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T, typename V>
T* as(V* array) {
  return static_cast<T*>(array);
}

// Tokens are counted in 32 bits.
inline int count(int64_t tokens, const std::string& problem) {
  if (tokens >= int64_t{1} << 30)
    throw std::invalid_argument("expected fewer than 2^30 tokens, got " + problem + "; try a smaller batch");
  return static_cast<int>(tokens);
}

// [batch, features], or with more than one position [images, features, positions].
inline Grid tokens_of(int64_t positions, int64_t features) {
  return {1, static_cast<int>(positions), features * positions, 0, 1, positions};
}

}  // namespace spfde::cuda
