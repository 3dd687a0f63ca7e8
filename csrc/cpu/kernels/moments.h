// Mean and variance of a convolution's outputs, taken of every chunk while it is near.
#pragma once

#include "norm_terms.h"
#include "planes.h"

namespace spfde::cpu::SPFDE_ISA {

// Of one channel in one chunk. squares: the sum of those of the deviations from the mean.
struct Moments {
  double mean, squares;
};

namespace {

// Vectors of lanes, `vectors` of them from one position to the next.
struct Deviations {
  const float* lanes;
  int64_t vectors;

  template <class T>
  Pair<T> term(T, const Shared& m, int64_t at, int64_t) const {
    return deviation(read<T>(lanes + at * vectors), m.get<T>(kMean, 0));
  }
};

inline Pair<double> sum_lanes(const Planes& p, const float* row, int64_t images, const Shared& m) {
  Pair<double> sum = {0., 0.};
  for (int64_t b = 0; b < images; b += kWidth) {  // lanes without an image are summed, but left out of the total
    Sums sums;
    sums.add(Deviations{row + b, p.lanes / kWidth}, m, 0, p.target_size / p.lanes * kWidth);
    const Pair<double> part = sums.total(min(kWidth, images - b));
    sum.first += part.first;
    sum.second += part.second;
  }
  return sum;
}

// Those of the row of a channel of which only the first `images` lanes count.
inline Moments moments_of(const Planes& p, const float* row, int64_t images) {
  const int64_t positions = p.target_size / p.lanes;
  const double n = static_cast<double>(positions * images);
  Shared m = {};
  m.numbers[kMean] = guess_mean(row + positions / 2 * p.lanes, min(images, kWidth), 1);  // not of the border
  Pair<double> sum = sum_lanes(p, row, images, m);
  if (misses_mean(sum, n, m.numbers[kMean])) sum = sum_lanes(p, row, images, m);
  const Pair<double> found = moments_around(sum, n, m.numbers[kMean]);
  return {found.first, found.second * n};
}

// moments [channels, 2]: mean and biased variance of channels whose part in chunk k is found[k * channels + c].
inline void combine(const Conv2dGeometry& g, const Planes& p, const Moments* found, double* moments) {
  const int64_t channels = g.target_channels;
  const double n = static_cast<double>(g.batch * (p.target_size / p.lanes));
  const auto share = [&](int64_t k) {
    return static_cast<double>(min(p.images, g.batch - k * p.images)) / static_cast<double>(g.batch);
  };
  for (int64_t c = 0; c < channels; ++c) {
    double shift = 0., var = 0.;  // of the mean, from the first chunk's
    for (int64_t k = 1; k < p.chunks; ++k) shift += share(k) * (found[k * channels + c].mean - found[c].mean);
    const double mean = found[c].mean + shift;
    for (int64_t k = 0; k < p.chunks; ++k) {
      const Moments& part = found[k * channels + c];
      var += part.squares / n + share(k) * (part.mean - mean) * (part.mean - mean);
    }
    moments[2 * c] = mean;
    moments[2 * c + 1] = var;
  }
}

}  // namespace
}  // namespace spfde::cpu::SPFDE_ISA
