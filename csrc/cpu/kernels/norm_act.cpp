// Statistics and gradients of a normalisation are sums over a channel; norm_passes.h takes both passes over the memory,
// here is what they compute.
#include "spfde/norm_act.h"

#include "cpu/float32.h"
#include "norm_passes.h"
#include "table.h"

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

// ---- what is summed, what is written ------------------------------------------------------------------------------

template <Activation A, bool kResidual>
struct Forward {
  NormActArgs a;
  double n;
  const float *x = floats(a.x), *residual = floats(a.residual);
  float* y = floats(a.y);

  bool sums() const { return a.batch_statistics; }

  // Squares are summed around a value near the mean, so that nothing cancels: here a guess from the first values, which
  // is exact where all are equal.
  void before(int64_t c, float* numbers) const {
    const NormShape& s = a.shape;
    const float* first = x + (s.channels_last ? c : c * s.pixels);
    const int64_t count = min(s.channels_last ? s.batch * s.pixels : s.pixels, 16);
    const int64_t stride = s.channels_last ? s.channels : 1;
    float sum = 0.f;
    for (int64_t i = 1; i < count; ++i) sum += first[i * stride] - first[0];
    numbers[kMean] = first[0] + sum / static_cast<float>(count);
  }
  template <class T, class Numbers>
  Pair<T> term(T, const Numbers& m, int64_t at, int64_t lane) const {
    const T d = read<T>(x + at) - m.template get<T>(kMean, lane);
    return {d, d * d};
  }
  // Where the first values were no sample of the rest, the sums say how far off: they are taken once more around the
  // mean. With an error of at most two deviations the variance keeps all but two bits.
  bool misses(Pair<double> sum, float* numbers) const {
    const double mean = sum.first / n, var = sum.second / n - mean * mean;
    if (mean * mean <= 4. * var) return false;
    numbers[kMean] = static_cast<float>(numbers[kMean] + mean);
    return true;
  }
  void after(int64_t c, Pair<double> sum, float* numbers) const {
    if (a.batch_statistics) {
      const double mean = sum.first / n, var = sum.second / n - mean * mean;
      a.mean[c] = static_cast<float>(numbers[kMean] + mean);
      a.var[c] = var < 0. ? 0.f : static_cast<float>(var);
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
  }
  template <class T, class Numbers>
  void write(T, const Numbers& m, int64_t at, int64_t lane) const {
    const T dz = kResidual ? read<T>(dresidual + at) : behind_activation<T>(m, at, lane);
    const T d = read<T>(x + at) - m.template get<T>(kMean, lane);
    put(dx + at, dz * m.template get<T>(kScale, lane) +
                     (d * m.template get<T>(kSlope, lane) + m.template get<T>(kOffset, lane)));
  }
};

template <class Op, class Args>
void pass(const Args& a, int threads) {
  const int64_t values = a.shape.batch * a.shape.channels * a.shape.pixels;
  if (values < 32768) threads = 1;  // waking a thread costs more than it would save
  const Op op = {a, static_cast<double>(a.shape.batch * a.shape.pixels)};
  a.shape.channels_last ? over_channels_last(a.shape, threads, op) : over_planes(a.shape, threads, op);
}

template <template <Activation, bool> class Op, bool kResidual, class Args>
void passes(const Args& a, int threads) {
  switch (a.act) {
    case Activation::none:
      return pass<Op<Activation::none, kResidual>>(a, threads);
    case Activation::relu:
      return pass<Op<Activation::relu, kResidual>>(a, threads);
    case Activation::relu6:
      return pass<Op<Activation::relu6, kResidual>>(a, threads);
  }
}

}  // namespace

void norm_act(const NormActArgs& a, const Exec& exec) {
  a.residual ? passes<Forward, true>(a, exec.threads) : passes<Forward, false>(a, exec.threads);
}

void norm_act_grad(const NormActGradArgs& a, const Exec& exec) {
  a.y ? passes<Backward, true>(a, exec.threads) : passes<Backward, false>(a, exec.threads);
}

}  // namespace spfde::cpu::SPFDE_ISA
