// Drawn problems, sums in double, and the comparison with them: what every test of the native core uses.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace test {

using Floats = std::vector<float>;
using Random = std::mt19937;

constexpr double kTolerance = 2e-6;  // of the sum of absolute terms; float32 rounds at 6e-8

// A sum in double, with the sum of its absolute terms: the scale of what rounding can do to it.
struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::fabs(term);
  }
};
using Sums = std::vector<Sum>;

inline int failures = 0;

inline void expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

inline void expect_close(const std::string& what, const Floats& got, const Sums& wanted) {
  expect(got.size() == wanted.size(), what + ": size");
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::fabs(got[i] - wanted[i].value);
    if (error <= kTolerance * wanted[i].size + 1e-30) continue;  // also false for NaN
    expect(false, what + "[" + std::to_string(i) + "]: got " + std::to_string(got[i]) + ", expected " +
                      std::to_string(wanted[i].value));
    return;
  }
}

inline Floats normal(Random& random, int64_t count) {
  std::normal_distribution<float> draw;
  Floats out(count);
  for (float& value : out) value = draw(random);
  return out;
}

// What a kernel has to overwrite everywhere.
inline Floats unwritten(int64_t count) { return Floats(count, std::numeric_limits<float>::quiet_NaN()); }

// A random mask as rows of ascending columns.
struct Mask {
  std::vector<int32_t> ptr{0}, col;
  int64_t count() const { return static_cast<int64_t>(col.size()); }
};

inline Mask mask(Random& random, int64_t rows, int64_t cols, double density) {
  std::bernoulli_distribution stored(density);
  Mask out;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      if (stored(random)) out.col.push_back(static_cast<int32_t>(c));
    out.ptr.push_back(static_cast<int32_t>(out.col.size()));
  }
  return out;
}

}  // namespace test
