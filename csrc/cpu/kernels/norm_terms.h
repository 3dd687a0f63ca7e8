// What norm_act sums and what it writes, forward and backward: the operations that norm_passes.h takes over memory.
#pragma once

#include "cpu/float32.h"
#include "norm_passes.h"
#include "spfde/norm_act.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// Comparisons are turned so that a NaN stays a NaN.
template <Activation A, class T>
inline T activate(T z) {
  const T zero{}, six = zero + 6.f;
  if (A != Activation::none) z = z < zero ? zero : z;
  if (A == Activation::relu6) z = z > six ? six : z;
  return z;
}

// dy where the activation of z, or equally of act(z), has slope 1.
template <Activation A, class T>
inline T gate(T z, T dy) {
  const T zero{}, six = zero + 6.f;
  if (A != Activation::none) dy = z <= zero ? zero : dy;
  if (A == Activation::relu6) dy = z >= six ? zero : dy;
  return dy;
}

template <Activation A, class T, class Numbers>
inline T affine(const Numbers& m, T x, int64_t lane) {
  return (x - m.template get<T>(kMean, lane)) * m.template get<T>(kScale, lane) + m.template get<T>(kBias, lane);
}

inline void set_affine(const float* weight, const float* bias, float mean, float var, double eps, int64_t c,
                       float* numbers) {
  numbers[kMean] = mean;
  numbers[kScale] = static_cast<float>((weight ? weight[c] : 1.) / __builtin_sqrt(var + eps));
  numbers[kBias] = bias ? bias[c] : 0.f;
}

// ---- mean and variance --------------------------------------------------------------------------------------------

// Squares are summed around a value near the mean, so that nothing cancels: a guess from some values, which is exact
// where all are equal.
inline float guess_mean(const float* values, int64_t count, int64_t stride) {
  float sum = 0.f;
  for (int64_t i = 1; i < count; ++i) sum += values[i * stride] - values[0];
  return values[0] + sum / static_cast<float>(count);
}

template <class T>
inline Pair<T> deviation(T x, T guess) {
  const T d = x - guess;
  return {d, d * d};
}

// Where those values were no sample of the rest, the sums of n deviations say how far off: they are taken once more
// around the mean, which becomes the guess. With an error of at most two deviations the variance keeps all but two
// bits.
inline bool misses_mean(Pair<double> sum, double n, float& guess) {
  const double mean = sum.first / n, var = sum.second / n - mean * mean;
  if (mean * mean <= 4. * var) return false;
  guess = static_cast<float>(guess + mean);
  return true;
}

// Mean and biased variance.
inline Pair<double> moments_around(Pair<double> sum, double n, float guess) {
  const double mean = sum.first / n, var = sum.second / n - mean * mean;
  return {guess + mean, var < 0. ? 0. : var};
}

// ---- what is summed, what is written ------------------------------------------------------------------------------

template <Activation A, bool kResidual>
struct Forward {
  NormActArgs a;
  double n;
  const float *x = floats(a.x), *residual = floats(a.residual);
  float* y = floats(a.y);

  bool sums() const { return a.batch_statistics && !a.moments; }
  bool writes() const { return true; }

  void before(int64_t c, float* numbers) const {
    const NormShape& s = a.shape;
    if (s.channels_last)
      numbers[kMean] = guess_mean(x + c, min(s.batch * s.pixels, 16), s.channels);
    else
      numbers[kMean] = guess_mean(x + c * s.pixels, min(s.pixels, 16), 1);
  }
  template <class T, class Numbers>
  Pair<T> term(T, const Numbers& m, int64_t at, int64_t lane) const {
    return deviation(read<T>(x + at), m.template get<T>(kMean, lane));
  }
  bool misses(Pair<double> sum, float* numbers) const { return misses_mean(sum, n, numbers[kMean]); }
  void after(int64_t c, Pair<double> sum, float* numbers) const {
    if (a.batch_statistics) {
      const Pair<double> found =
          a.moments ? Pair<double>{a.moments[2 * c], a.moments[2 * c + 1]} : moments_around(sum, n, numbers[kMean]);
      a.mean[c] = static_cast<float>(found.first);
      a.var[c] = static_cast<float>(found.second);
      if (a.running_mean) approach(a.running_mean[c], a.mean[c]);
      if (a.running_var) approach(a.running_var[c], a.var[c] * n / (n - 1.));
    }
    set_affine(a.weight, a.bias, a.mean[c], a.var[c], a.eps, c, numbers);
  }
  void approach(float& running, double target) const {
    running = static_cast<float>((1. - a.momentum) * running + a.momentum * target);
  }
  template <class T, class Numbers>
  void write(T, const Numbers& m, int64_t at, int64_t lane) const {
    T z = affine<A>(m, read<T>(x + at), lane);
    if (kResidual) z += read<T>(residual + at);
    put(y + at, activate<A>(z));
  }
};

// With dz = dy behind the activation: dx = scale * (dz - mean(dz) - xhat * mean(dz * xhat)).
template <Activation A, bool kResidual>
struct Backward {
  NormActGradArgs a;
  double n;
  const float *x = floats(a.x), *y = floats(a.y), *dy = floats(a.dy);
  float *dx = floats(a.dx), *dresidual = floats(a.dresidual);

  bool sums() const { return true; }
  bool writes() const { return !a.numbers; }
  bool misses(Pair<double>, float*) const { return false; }

  void before(int64_t c, float* numbers) const { set_affine(a.weight, a.bias, a.mean[c], a.var[c], a.eps, c, numbers); }
  template <class T, class Numbers>
  T behind_activation(const Numbers& m, int64_t at, int64_t lane) const {
    const T g = read<T>(dy + at);
    if (A == Activation::none) return g;
    return gate<A>(kResidual ? read<T>(y + at) : affine<A>(m, read<T>(x + at), lane), g);
  }
  template <class T, class Numbers>
  Pair<T> term(T, const Numbers& m, int64_t at, int64_t lane) const {
    const T dz = behind_activation<T>(m, at, lane);
    if (kResidual) put(dresidual + at, dz);
    return {dz, dz * (read<T>(x + at) - m.template get<T>(kMean, lane))};
  }
  void after(int64_t c, Pair<double> sum, float* numbers) const {
    const double inverse_var = 1. / (a.var[c] + a.eps), scale = numbers[kScale];
    a.dbias[c] = static_cast<float>(sum.first);
    a.dweight[c] = static_cast<float>(sum.second * __builtin_sqrt(inverse_var));
    numbers[kSlope] = a.batch_statistics ? static_cast<float>(-scale * inverse_var * sum.second / n) : 0.f;
    numbers[kOffset] = a.batch_statistics ? static_cast<float>(-scale * sum.first / n) : 0.f;
    for (int k = 0; a.numbers && k < kNumbers; ++k) a.numbers[k * a.shape.channels + c] = numbers[k];
  }
  template <class T, class Numbers>
  T gradient(const Numbers& m, int64_t at, int64_t lane) const {
    const T dz = kResidual ? read<T>(dresidual + at) : behind_activation<T>(m, at, lane);
    const T d = read<T>(x + at) - m.template get<T>(kMean, lane);
    return dz * m.template get<T>(kScale, lane) +
           (d * m.template get<T>(kSlope, lane) + m.template get<T>(kOffset, lane));
  }
  template <class T, class Numbers>
  void write(T, const Numbers& m, int64_t at, int64_t lane) const {
    put(dx + at, gradient<T>(m, at, lane));
  }
};

}  // namespace
}  // namespace spfde::cpu::SPFDE_ISA
