// Two convolutions one behind the other, with what follows them.
#include <algorithm>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"

using namespace test;
using spfde::Activation;

namespace {

struct Case {
  int64_t batch, channels, height, width, inner;
  int64_t kernel, stride, pad, dilation, groups;  // of the first; pad on top, one more on the left
  bool channels_last, bias;
  Activation act;
  int threads;
};

const Case kCases[] = {
    {16, 3, 8, 8, 16, 3, 1, 1, 1, 1, false, true, Activation::relu, 2},
    {19, 4, 9, 7, 6, 3, 2, 1, 1, 2, false, true, Activation::relu6, 2},
    {33, 8, 5, 11, 8, 3, 1, 2, 2, 8, true, false, Activation::none, 1},
    {7, 32, 4, 4, 40, 1, 1, 0, 1, 1, false, true, Activation::relu, 1},
    {64, 20, 17, 17, 24, 5, 3, 0, 1, 1, true, true, Activation::relu, 2},
};

double limit(Activation act) { return act == Activation::relu6 ? 6 : std::numeric_limits<double>::infinity(); }

struct Chain {
  Case c;
  std::string name;
  int64_t out_h, out_w;
  Mask first, second;
  Floats weights, more, bias, x;

  Chain(const Case& given, int number) : c(given), name("chain " + std::to_string(number)) {
    Random random(number);
    const int64_t reach = (c.kernel - 1) * c.dilation;
    out_h = (c.height + 2 * c.pad - reach - 1) / c.stride + 1;
    out_w = (c.width + 2 * c.pad + 1 - reach - 1) / c.stride + 1;
    first = mask(random, c.inner, c.channels / c.groups * c.kernel * c.kernel, 0.4);
    second = mask(random, c.inner, c.inner * 9, 0.1);
    weights = normal(random, first.count()), more = normal(random, second.count());
    bias = normal(random, c.inner), x = normal(random, c.batch * c.channels * c.height * c.width);
  }

  int64_t at(int64_t n, int64_t channel, int64_t i, int64_t j, int64_t channels, int64_t h, int64_t w) const {
    return c.channels_last ? ((n * h + i) * w + j) * channels + channel : ((n * channels + channel) * h + i) * w + j;
  }

  struct Conv {
    int64_t kernel, stride, top, left, dilation, groups, channels, height, width;
  };

  // act(conv(source) + bias + residual) before the activation, of sums in double.
  Sums convolve(const Conv& k, const Mask& m, const Floats& w, const Floats& source, const float* residual) const {
    Sums sums(c.batch * c.inner * out_h * out_w);
    for (int64_t n = 0; n < c.batch; ++n)
      for (int64_t o = 0; o < c.inner; ++o)
        for (int64_t y = 0; y < out_h; ++y)
          for (int64_t v = 0; v < out_w; ++v) {
            const int64_t to = at(n, o, y, v, c.inner, out_h, out_w);
            Sum& sum = sums[to];
            if (c.bias) sum.add(bias[o]);
            if (residual) sum.add(residual[to]);
            for (int32_t p = m.ptr[o]; p < m.ptr[o + 1]; ++p) {
              const int64_t taps = k.kernel * k.kernel, tap = m.col[p] % taps;
              const int64_t i = y * k.stride - k.top + tap / k.kernel * k.dilation;
              const int64_t j = v * k.stride - k.left + tap % k.kernel * k.dilation;
              const int64_t channel = o / (c.inner / k.groups) * (k.channels / k.groups) + m.col[p] / taps;
              if (i < 0 || i >= k.height || j < 0 || j >= k.width) continue;
              sum.add(double(w[p]) * source[at(n, channel, i, j, k.channels, k.height, k.width)]);
            }
            const double z = sum.value;
            sum.value = c.act == Activation::none ? z : std::clamp(z, 0.0, limit(c.act));
          }
    return sums;
  }

  void run() const {
    const int64_t total = c.batch * c.inner * out_h * out_w;
    Floats between = unwritten(total), y = unwritten(total);
    const spfde::ChainValue values[] = {
        {c.channels, c.height, c.width, x.data(), nullptr, c.channels_last},
        {c.inner, out_h, out_w, nullptr, between.data(), c.channels_last},
        {c.inner, out_h, out_w, nullptr, y.data(), c.channels_last},
    };
    const float* shift = c.bias ? bias.data() : nullptr;
    const spfde::ChainStep steps[] = {
        {0, 1, -1, c.kernel, c.kernel, c.stride, c.stride, c.pad, c.pad + 1, c.dilation, c.dilation, c.groups,
         first.ptr.data(), first.col.data(), weights.data(), shift, c.act},
        {1, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, second.ptr.data(), second.col.data(), more.data(), shift, c.act},
    };
    spfde::cpu::conv_chain({.batch = c.batch, .values = values, .value_count = 3, .steps = steps, .step_count = 2},
                           {.threads = c.threads});
    const Conv one = {c.kernel, c.stride, c.pad, c.pad + 1, c.dilation, c.groups, c.channels, c.height, c.width};
    const Conv two = {3, 1, 1, 1, 1, 1, c.inner, out_h, out_w};
    expect_close(name + ": between", between, convolve(one, first, weights, x, nullptr));
    expect_close(name + ": y", y, convolve(two, second, more, between, between.data()));
  }
};

}  // namespace

std::vector<Run> conv_chain_cases() {
  std::vector<Run> runs;
  int number = 0;
  for (const Case& c : kCases) {
    const Chain chain(c, ++number);
    runs.push_back([chain] { chain.run(); });
  }
  return runs;
}
