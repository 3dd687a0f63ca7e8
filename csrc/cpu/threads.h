#pragma once

namespace spfde::cpu {

// As many of `threads` as have a few microseconds of work each. A pure function, so that sums keep their order.
static inline int worth_threads(int threads, double multiply_adds) {
  constexpr double kWorth = 1 << 16;
  const double most = multiply_adds / kWorth + 1;
  return most < threads ? static_cast<int>(most) : threads;
}

}  // namespace spfde::cpu
