// What the launches of products by blocks share.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "cuda/block_product.h"
#include "cuda/block_sample.h"
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

// How many rows of the product a block of threads computes.
template <typename Args>
int64_t outputs_of(const Args& args) {
  return args.tiles.together * (args.transposed ? args.width : args.height);
}

// Calls f with all of them as constants: the type, exactness, the rows and whether the product is transposed.
template <typename Args, typename F>
void for_product(const Args& args, F f) {
  for_precision(args.dtype, args.tf32, [&](auto zero, auto exact) {
    for_outputs(outputs_of(args), [&](auto outputs) {
      args.transposed ? f(zero, exact, outputs, std::true_type{}) : f(zero, exact, outputs, std::false_type{});
    });
  });
}

constexpr int bits(int64_t power) {
  int log = 0;
  while (power > 1) power /= 2, ++log;
  return log;
}

template <typename T, typename Args>
Weight<T> weight_of(const Args& args) {
  const int64_t out = args.transposed ? args.width : args.height, in = args.transposed ? args.height : args.width;
  return {as<const T>(args.values),
          as<const T>(args.bias),
          args.tiles.entry,
          args.tiles.work,
          static_cast<int>(args.tiles.works),
          static_cast<int>(args.tiles.together),
          bits(out),
          bits(in)};
}

template <typename T, typename Args>
Gradient<T> gradient_of(const Args& args, int64_t rows, float* sums) {
  return {as<T>(args.dvalues),
          as<T>(args.dbias),
          sums,
          args.unit_count,
          args.capacity * args.height * args.width,
          static_cast<int>(rows),
          bits(args.height),
          bits(args.width)};
}

// Chunks of a weight gradient, and into how many parts its tokens are cut.
template <typename Args>
int64_t chunks(const Args& args) {
  return args.tiles.entries * args.width / kInputs;
}

template <typename Args>
int parts_of(const Args& args, int64_t tokens, int multiprocessors) {
  const int depth = args.dtype == DType::float32 ? kDepth<float> : kDepth<__half>;
  return parts(chunks(args), tokens, depth, multiprocessors);
}

// Bytes for the sums of so many parts.
template <typename Args>
int64_t sums_size(const Args& args, int64_t rows, int parts) {
  const int64_t size = args.capacity * args.height * args.width + rows;
  return parts == 1 ? 0 : parts * size * static_cast<int64_t>(sizeof(float));
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
