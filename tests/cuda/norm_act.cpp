// norm_act and its gradients.
#include "cases.h"
#include "cuda/ops.h"

namespace {

using namespace test;
using spfde::Activation;
namespace cuda = spfde::cuda;

struct Problem {
  spfde::NormShape shape;
  Activation act;
  bool batch_statistics, affine, residual;
  int multiprocessors;
  double outlier = 0;  // instead of what comes first in every channel
};

// Where value i of channel c lies.
int64_t place(const spfde::NormShape& s, int64_t c, int64_t i) {
  return s.channels_last ? i * s.channels + c : (i / s.pixels * s.channels + c) * s.pixels + i % s.pixels;
}

double activated(Activation act, double z) {
  if (act != Activation::none) z = std::max(z, 0.0);
  return act == Activation::relu6 ? std::min(z, 6.0) : z;
}

bool passes(Activation act, double z) {
  return act == Activation::none || (z > 0 && (act == Activation::relu || z < 6));
}

template <typename T>
void run(const std::string& name, const Problem& p) {
  const auto& s = p.shape;
  const int64_t n = s.batch * s.pixels, values = n * s.channels;
  const double eps = 1e-5, momentum = 0.3;
  const std::string what = name + " " + Stored<T>::name;
  Random random(7);
  auto x = drawn<T>(random, values), residual = drawn<T>(random, values), dy = drawn<T>(random, values);
  auto weight = normal(random, s.channels), bias = normal(random, s.channels), mean = normal(random, s.channels);
  Floats var(s.channels, 2.f), running_mean(s.channels, 1.f), running_var(s.channels, 1.f);
  if (p.outlier != 0)
    for (int64_t c = 0; c < s.channels; ++c) x[place(s, c, 0)] = spfde::cuda::from_float<T>(p.outlier);
  if (p.batch_statistics) mean = unwritten(s.channels), var = unwritten(s.channels);

  const int64_t scratch_size = cuda::norm_act_scratch(s, p.multiprocessors);
  std::vector<unsigned char> scratch(scratch_size);
  auto y = nowhere_written<T>(values);
  cuda::norm_act({.shape = s,
                  .act = p.act,
                  .batch_statistics = p.batch_statistics,
                  .eps = eps,
                  .momentum = momentum,
                  .weight = p.affine ? weight.data() : nullptr,
                  .bias = p.affine ? bias.data() : nullptr,
                  .x = x.data(),
                  .residual = p.residual ? residual.data() : nullptr,
                  .mean = mean.data(),
                  .var = var.data(),
                  .running_mean = p.batch_statistics ? running_mean.data() : nullptr,
                  .running_var = p.batch_statistics ? running_var.data() : nullptr,
                  .y = y.data(),
                  .dtype = Stored<T>::dtype},
                 p.multiprocessors, scratch.data(), {.device = 0});

  const bool keeps_y = p.residual && p.act != Activation::none;
  auto dx = nowhere_written<T>(values), dresidual = nowhere_written<T>(keeps_y ? values : 0);
  Floats dweight = unwritten(s.channels), dbias = unwritten(s.channels);
  cuda::norm_act_grad({.shape = s,
                       .act = p.act,
                       .batch_statistics = p.batch_statistics,
                       .eps = eps,
                       .weight = p.affine ? weight.data() : nullptr,
                       .bias = p.affine ? bias.data() : nullptr,
                       .mean = mean.data(),
                       .var = var.data(),
                       .x = x.data(),
                       .y = keeps_y ? y.data() : nullptr,
                       .dy = dy.data(),
                       .dx = dx.data(),
                       .dresidual = keeps_y ? dresidual.data() : nullptr,
                       .dweight = dweight.data(),
                       .dbias = dbias.data(),
                       .dtype = Stored<T>::dtype},
                      p.multiprocessors, scratch.data(), {.device = 0});

  Sums means(s.channels), vars(s.channels), running(s.channels), out(values), back(values), passed(values),
      weights(s.channels), biases(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) {
    double m = mean[c], v = var[c];
    if (p.batch_statistics) {
      m = v = 0;
      for (int64_t i = 0; i < n; ++i) m += as_double(x[place(s, c, i)]) / n;
      for (int64_t i = 0; i < n; ++i) v += std::pow(as_double(x[place(s, c, i)]) - m, 2) / n;
      running[c].add(0.7), running[c].add(0.3 * v * n / (n - 1));
    }
    means[c] = {m, std::fabs(m) + std::sqrt(v)}, vars[c].add(v);
    const double inverse = 1 / std::sqrt(v + eps), w = p.affine ? weight[c] : 1., b = p.affine ? bias[c] : 0.;
    double first = 0, second = 0;
    auto xhat = [&](int64_t i) { return (as_double(x[place(s, c, i)]) - m) * inverse; };
    auto dz = [&](int64_t i) {
      const int64_t at = place(s, c, i);
      const double r = p.residual ? as_double(residual[at]) : 0, z = xhat(i) * w + b + r;
      // On which side of a kink a value lies is the kernel's to say.
      const bool near = std::fabs(z) < 1e-4 || std::fabs(z - 6) < 1e-4;
      return passes(p.act, near || keeps_y ? as_double(y[at]) : z) ? as_double(dy[at]) : 0.;
    };
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = place(s, c, i);
      const double r = p.residual ? as_double(residual[at]) : 0;
      out[at] = {activated(p.act, xhat(i) * w + b + r), 2 + std::fabs(xhat(i) * w) + std::fabs(b) + std::fabs(r)};
      if (keeps_y) passed[at].add(dz(i));
      weights[c].add(dz(i) * xhat(i)), biases[c].add(dz(i));
      first += dz(i) / n, second += dz(i) * xhat(i) / n;
    }
    for (int64_t i = 0; i < n; ++i) {
      const double mean_part = p.batch_statistics ? first + xhat(i) * second : 0.;
      back[place(s, c, i)] = {w * inverse * (dz(i) - mean_part),
                              std::fabs(w) * inverse * (2 + std::fabs(dz(i)) + std::fabs(mean_part))};
    }
  }
  expect_sums(what + " y", y, out);
  expect_sums(what + " mean", mean, means);
  expect_sums(what + " var", var, vars);
  if (p.batch_statistics) expect_sums(what + " running_var", running_var, running);
  expect_sums(what + " dx", dx, back);
  if (keeps_y) expect_sums(what + " dresidual", dresidual, passed);
  expect_sums(what + " dweight", dweight, weights);
  expect_sums(what + " dbias", dbias, biases);
}

}  // namespace

std::vector<Case> norm_act_cases() {
  std::vector<Case> cases;
  auto add = [&](const std::string& name, const Problem& p) {
    cases.push_back({"norm_act " + name, [=] {
                       run<float>("norm_act " + name, p);
                       run<__half>("norm_act " + name, p);
                       run<__nv_bfloat16>("norm_act " + name, p);
                     }});
  };
  constexpr auto none = Activation::none, relu = Activation::relu, relu6 = Activation::relu6;
  add("planes", {{3, 5, 36, false}, relu, true, true, false, 2});
  add("planes in parts", {{40, 2, 340, false}, relu6, true, true, true, 8});
  add("odd planes", {{7, 3, 49, false}, none, true, false, true, 2});
  add("channels_last", {{5, 40, 9, true}, relu, true, true, true, 1});
  add("channels_last in parts", {{6, 4, 700, true}, relu, true, true, false, 8});
  add("odd channels", {{4, 7, 6, true}, relu6, true, false, false, 2});
  add("rows", {{37, 33, 1, false}, relu, true, true, false, 2});
  add("evaluation", {{2, 6, 20, false}, relu6, false, true, true, 2});
  add("evaluation channels_last", {{2, 6, 20, true}, none, false, true, false, 2});
  add("an outlier first", {{5, 3, 400, false}, none, true, false, false, 1, 1e4});
  add("an outlier first channels_last", {{5, 3, 400, true}, none, true, false, false, 1, 1e4});
  return cases;
}
