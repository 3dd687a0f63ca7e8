// Problems of the CUDA kernels on the emulator: in every stored type, compared with sums in double.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device.h"
#include "spfde/dtype.h"

namespace test {

template <typename T>
struct Stored;
template <>
struct Stored<float> {
  static constexpr spfde::DType dtype = spfde::DType::float32;
  static constexpr double rounding = 0;
  static constexpr const char* name = "float32";
};
template <>
struct Stored<__half> {
  static constexpr spfde::DType dtype = spfde::DType::float16;
  static constexpr double rounding = 0x1p-11;  // relative, of a result
  static constexpr const char* name = "float16";
};
template <>
struct Stored<__nv_bfloat16> {
  static constexpr spfde::DType dtype = spfde::DType::bfloat16;
  static constexpr double rounding = 0x1p-8;
  static constexpr const char* name = "bfloat16";
};

template <typename T>
using Array = std::vector<T>;

template <typename T>
Array<T> stored(const Floats& values) {
  Array<T> out;
  out.reserve(values.size());  // no room behind it in which AddressSanitizer would miss a read
  for (float value : values) out.push_back(spfde::cuda::from_float<T>(value));
  return out;
}

template <typename T>
Array<T> drawn(Random& random, int64_t count) {
  return stored<T>(normal(random, count));
}

template <typename T>
Array<T> nowhere_written(int64_t count) {
  return stored<T>(unwritten(count));
}

template <typename T>
double as_double(T value) {
  return spfde::cuda::to_float(value);
}

// Prints the worst error, as a share of what is allowed, at the end of a run.
inline double worst = 0;

template <typename T>
void expect_sums(const std::string& what, const Array<T>& got, const Sums& wanted) {
  expect(got.size() == wanted.size(), what + ": size");
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double value = as_double(got[i]), error = std::fabs(value - wanted[i].value);
    const double allowed = kTolerance * wanted[i].size + Stored<T>::rounding * std::fabs(wanted[i].value) + 1e-7;
    if (error <= allowed) {  // false for NaN
      worst = std::max(worst, error / allowed);
      continue;
    }
    expect(false, what + "[" + std::to_string(i) + "]: got " + std::to_string(value) + ", expected " +
                      std::to_string(wanted[i].value));
    return;
  }
}

struct Case {
  std::string name;
  std::function<void()> run;
};

}  // namespace test

std::vector<test::Case> linear_cases();  // spmm and sddmm
std::vector<test::Case> block_cases();   // block_spmm and block_sddmm
std::vector<test::Case> block_conv2d_cases();
std::vector<test::Case> conv2d_cases();
std::vector<test::Case> norm_act_cases();
std::vector<test::Case> scatter_cases();
