// norm_act and its gradients, with batch and with given statistics.
#include <algorithm>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"

using namespace test;
using spfde::Activation;

namespace {

struct Case {
  spfde::NormShape shape;
  Activation act;
  bool batch_statistics, residual;
  int threads;
  bool outlier = false;  // the first values are far from all others
};

const Case kCases[] = {
    {{2, 3, 5, false}, Activation::relu, true, false, 1},
    {{4, 17, 49, false}, Activation::relu, true, true, 2},
    {{4, 17, 49, true}, Activation::relu, true, true, 2},
    {{3, 64, 33, true}, Activation::none, true, false, 2},
    {{5, 8, 1, false}, Activation::relu6, true, false, 1},
    {{2, 9, 100, false}, Activation::relu6, true, true, 2},
    {{3, 33, 16, false}, Activation::relu, false, false, 2},
    {{1, 16, 64, true}, Activation::none, false, true, 1},
    {{8, 3, 49, false}, Activation::none, true, false, 1, true},
    {{8, 20, 49, true}, Activation::none, true, false, 2, true},
};

constexpr double kEps = 1e-5, kMomentum = 0.1;
constexpr double kScale = 40;  // what rounding in the statistics adds to that in the sums

double limit(Activation act) { return act == Activation::relu6 ? 6 : std::numeric_limits<double>::infinity(); }

struct Norm {
  Case c;
  std::string name;
  int64_t channels, pixels, count, total;
  Floats weight, bias, x, residual, dy, mean, var;

  Norm(const Case& given, int number) : c(given), name("norm " + std::to_string(number)) {
    Random random(number);
    channels = c.shape.channels, pixels = c.shape.pixels, count = c.shape.batch * pixels, total = count * channels;
    weight = normal(random, channels), bias = normal(random, channels), mean = normal(random, channels);
    x = normal(random, total), residual = normal(random, total), dy = normal(random, total);
    if (c.outlier)
      for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t k = 0; k < std::min<int64_t>(pixels, 16); ++k) x[place(k, channel)] += 100;
    var = normal(random, channels);
    for (float& value : var) value = value * value + 0.5f;
  }

  int64_t place(int64_t k, int64_t channel) const {
    const int64_t n = k / pixels, p = k % pixels;
    return c.shape.channels_last ? (n * pixels + p) * channels + channel : (n * channels + channel) * pixels + p;
  }

  void run() const {
    Floats got_mean = mean, got_var = var, running_mean(channels, 0.25f), running_var(channels, 2.0f);
    Floats got_y = unwritten(total), got_dx = unwritten(total), got_dresidual = unwritten(total);
    Floats got_dweight = unwritten(channels), got_dbias = unwritten(channels);
    const bool keep_y = c.residual && c.act != Activation::none;
    const spfde::Exec exec{.threads = c.threads};
    spfde::cpu::norm_act({.shape = c.shape,
                          .act = c.act,
                          .batch_statistics = c.batch_statistics,
                          .eps = kEps,
                          .momentum = kMomentum,
                          .weight = weight.data(),
                          .bias = bias.data(),
                          .x = x.data(),
                          .residual = c.residual ? residual.data() : nullptr,
                          .mean = got_mean.data(),
                          .var = got_var.data(),
                          .running_mean = running_mean.data(),
                          .running_var = running_var.data(),
                          .y = got_y.data()},
                         exec);
    spfde::cpu::norm_act_grad({.shape = c.shape,
                               .act = c.act,
                               .batch_statistics = c.batch_statistics,
                               .eps = kEps,
                               .weight = weight.data(),
                               .bias = bias.data(),
                               .mean = got_mean.data(),
                               .var = got_var.data(),
                               .x = x.data(),
                               .y = keep_y ? got_y.data() : nullptr,
                               .dy = dy.data(),
                               .dx = got_dx.data(),
                               .dresidual = keep_y ? got_dresidual.data() : nullptr,
                               .dweight = got_dweight.data(),
                               .dbias = got_dbias.data()},
                              exec);
    Sums y(total), dx(total), dresidual(total), dweight(channels), dbias(channels);
    for (int64_t channel = 0; channel < channels; ++channel) {
      double m = mean[channel], v = var[channel];
      if (c.batch_statistics) {
        m = v = 0;
        for (int64_t k = 0; k < count; ++k) m += x[place(k, channel)] / double(count);
        for (int64_t k = 0; k < count; ++k) v += std::pow(x[place(k, channel)] - m, 2) / double(count);
        const double unbiased = v * double(count) / double(count - 1);
        const double most = 1e-6 * (c.outlier ? 1 + unbiased : 1);
        expect(std::fabs(running_mean[channel] - (0.25 + kMomentum * (m - 0.25))) < most, name + ": running mean");
        expect(std::fabs(running_var[channel] - (2 + kMomentum * (unbiased - 2))) < most, name + ": running var");
      }
      const double scale = 1 / std::sqrt(v + kEps);
      double sum = 0, product = 0;
      Sums passed(count);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = place(k, channel);
        const double hat = (x[at] - m) * scale;
        const double raw = weight[channel] * hat + bias[channel] + (c.residual ? residual[at] : 0);
        const bool open = c.act == Activation::none || (raw > 0 && raw < limit(c.act));
        y[at] = {c.act == Activation::none ? raw : std::clamp(raw, 0.0, limit(c.act)), kScale};
        passed[k].add(open ? dy[at] : 0);
        dresidual[at] = passed[k];
        dweight[channel].add(passed[k].value * hat);
        dbias[channel].add(passed[k].value);
      }
      sum = dbias[channel].value, product = dweight[channel].value;
      dweight[channel].size += kScale, dbias[channel].size += kScale;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = place(k, channel);
        const double hat = (x[at] - m) * scale;
        const double through = c.batch_statistics ? (sum + hat * product) / double(count) : 0;
        dx[at] = {weight[channel] * scale * (passed[k].value - through), kScale};
      }
    }
    expect_close(name + ": y", got_y, y);
    expect_close(name + ": dx", got_dx, dx);
    expect_close(name + ": dweight", got_dweight, dweight);
    expect_close(name + ": dbias", got_dbias, dbias);
    if (keep_y) expect_close(name + ": dresidual", got_dresidual, dresidual);
  }
};

}  // namespace

std::vector<Run> norm_act_cases() {
  std::vector<Run> runs;
  for (const Case& size : kCases) runs.push_back([norm = Norm(size, runs.size() + 1)] { norm.run(); });
  return runs;
}
