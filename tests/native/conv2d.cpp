// conv2d, its input and weight gradients, single weights and blocks, both memory formats.
#include <algorithm>
#include <array>
#include <cstring>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"

using namespace test;
namespace cpu = spfde::cpu;

namespace {

struct Case {
  int64_t batch, in, in_h, in_w, out, kernel_h, kernel_w, stride_h, stride_w, pad, dilation_h, dilation_w, groups;
  int64_t height, width;  // of a block
  double density;
  int threads;
};

const Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1.0, 1},    {2, 3, 8, 9, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0.4, 1},
    {3, 17, 14, 14, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0.1, 2}, {2, 8, 15, 13, 6, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 0.3, 2},
    {5, 16, 7, 7, 12, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0.2, 2},  {2, 6, 12, 17, 9, 3, 2, 3, 1, 2, 2, 3, 3, 1, 1, 0.5, 1},
    {1, 4, 9, 9, 4, 4, 3, 2, 3, 3, 1, 2, 2, 1, 1, 0.6, 2},    {2, 5, 10, 6, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0.0, 1},
    {2, 8, 11, 10, 8, 3, 3, 1, 1, 1, 1, 1, 1, 4, 1, 0.3, 2},  {3, 8, 9, 9, 12, 3, 3, 2, 2, 1, 1, 1, 2, 2, 2, 0.4, 1},
    {2, 12, 8, 8, 16, 1, 1, 1, 1, 0, 1, 1, 1, 4, 4, 0.4, 2},  {9, 6, 7, 8, 6, 3, 3, 2, 2, 1, 1, 1, 6, 1, 1, 0.6, 2},
    {3, 4, 20, 37, 8, 3, 3, 2, 2, 1, 1, 1, 4, 1, 1, 0.6, 2},  {21, 5, 9, 11, 7, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 0.4, 2},
    {37, 6, 7, 5, 4, 2, 3, 1, 1, 1, 1, 2, 2, 1, 1, 0.5, 1},   {33, 4, 8, 6, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 2},
};

// A stored weight: its row and column in [out, in / groups * kernel_h * kernel_w], its place in values.
struct Weight {
  int64_t row, col, place;
};

struct Conv {
  Case c;
  std::string name;
  spfde::Conv2dShape shape;
  Mask blocks;
  std::vector<int32_t> unit_ptr, unit_col;
  std::vector<Weight> weights;
  Floats values, bias, x, dy;
  int64_t taps, group_in, capacity;

  Conv(const Case& given, int number) : c(given), name("conv2d " + std::to_string(number)) {
    Random random(number);
    const auto length = [&](int64_t in, int64_t kernel, int64_t stride, int64_t dilation) {
      return (in + 2 * c.pad - dilation * (kernel - 1) - 1) / stride + 1;
    };
    shape = {c.batch,
             c.in,
             c.in_h,
             c.in_w,
             c.out,
             length(c.in_h, c.kernel_h, c.stride_h, c.dilation_h),
             length(c.in_w, c.kernel_w, c.stride_w, c.dilation_w),
             c.kernel_h,
             c.kernel_w,
             c.stride_h,
             c.stride_w,
             c.pad,
             c.pad,
             c.dilation_h,
             c.dilation_w,
             c.groups};
    taps = c.kernel_h * c.kernel_w;
    group_in = c.in / c.groups;
    draw_blocks(random);
    capacity = blocks.count() + 2;
    values = normal(random, blocks.count() * c.height * c.width);
    bias = normal(random, c.out);
    x = normal(random, c.batch * c.in * c.in_h * c.in_w);
    dy = normal(random, c.batch * c.out * shape.out_h * shape.out_w);
  }

  // A block spans input channels at one tap; its columns are block column * taps + tap.
  void draw_blocks(Random& random) {
    blocks = mask(random, c.out / c.height, group_in / c.width * taps, c.density);
    for (int32_t start : blocks.ptr) unit_ptr.push_back(static_cast<int32_t>(start * c.width));
    for (int64_t b = 0; b < c.out / c.height; ++b)
      for (int32_t k = blocks.ptr[b]; k < blocks.ptr[b + 1]; ++k)
        for (int64_t j = 0; j < c.width; ++j) {
          const int64_t channel = blocks.col[k] / taps * c.width + j, col = channel * taps + blocks.col[k] % taps;
          unit_col.push_back(static_cast<int32_t>(col));
          for (int64_t i = 0; i < c.height; ++i)
            weights.push_back({b * c.height + i, col, (k * c.height + i) * c.width + j});
        }
  }

  static int64_t place(int64_t n, int64_t channel, int64_t pixel, int64_t channels, int64_t pixels, bool last) {
    return last ? (n * pixels + pixel) * channels + channel : (n * channels + channel) * pixels + pixel;
  }

  // Calls f(stored weight, place in x, place in dy) for every multiply-add.
  template <typename F>
  void each_product(bool x_last, bool y_last, F f) const {
    const spfde::Conv2dShape& s = shape;
    for (const Weight& w : weights) {
      const int64_t channel = w.row / (c.out / c.groups) * group_in + w.col / taps;
      const int64_t i = w.col % taps / c.kernel_w, j = w.col % c.kernel_w;
      for (int64_t n = 0; n < c.batch; ++n)
        for (int64_t h = 0; h < s.out_h; ++h)
          for (int64_t v = 0; v < s.out_w; ++v) {
            const int64_t in_h = h * c.stride_h - c.pad + i * c.dilation_h;
            const int64_t in_w = v * c.stride_w - c.pad + j * c.dilation_w;
            if (in_h < 0 || in_h >= c.in_h || in_w < 0 || in_w >= c.in_w) continue;
            f(w, place(n, channel, in_h * c.in_w + in_w, c.in, c.in_h * c.in_w, x_last),
              place(n, w.row, h * s.out_w + v, c.out, s.out_h * s.out_w, y_last));
          }
    }
  }

  void run(bool x_last, bool y_last) const {
    Sums y(dy.size()), dx(x.size()), dvalues(capacity * c.height * c.width), dbias(c.out);
    const int64_t pixels = shape.out_h * shape.out_w;
    for (int64_t n = 0; n < c.batch; ++n)
      for (int64_t o = 0; o < c.out; ++o)
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t at = place(n, o, p, c.out, pixels, y_last);
          y[at].add(bias[o]);
          dbias[o].add(dy[at]);
        }
    each_product(x_last, y_last, [&](const Weight& w, int64_t at_x, int64_t at_y) {
      y[at_y].add(double(values[w.place]) * x[at_x]);
      dx[at_x].add(double(values[w.place]) * dy[at_y]);
      dvalues[w.place].add(double(x[at_x]) * dy[at_y]);
    });
    Floats got_y = unwritten(y.size()), got_dx = unwritten(dx.size());
    Floats got_dvalues = unwritten(dvalues.size()), got_dbias = unwritten(c.out);
    const cpu::Conv2dPlan plan(shape);
    const spfde::Exec exec{.threads = c.threads};
    if (c.height * c.width == 1) {
      const spfde::Conv2dArgs forward{.shape = shape,
                                      .row_ptr = blocks.ptr.data(),
                                      .col = blocks.col.data(),
                                      .values = values.data(),
                                      .bias = bias.data(),
                                      .x = x.data(),
                                      .y = got_y.data(),
                                      .x_channels_last = x_last,
                                      .y_channels_last = y_last};
      cpu::conv2d(forward, plan, exec);
      const Transposed t = transposed();
      const spfde::Conv2dInputGradArgs input{.shape = shape,
                                             .row_ptr = t.ptr.data(),
                                             .col = t.col.data(),
                                             .perm = t.perm.data(),
                                             .values = values.data(),
                                             .dy = dy.data(),
                                             .dx = got_dx.data(),
                                             .dy_channels_last = y_last,
                                             .dx_channels_last = x_last};
      const spfde::Conv2dWeightGradArgs weight{.shape = shape,
                                               .capacity = capacity,
                                               .row_ptr = blocks.ptr.data(),
                                               .col = blocks.col.data(),
                                               .dy = dy.data(),
                                               .x = x.data(),
                                               .dy_channels_last = y_last,
                                               .x_channels_last = x_last,
                                               .dvalues = got_dvalues.data(),
                                               .dbias = got_dbias.data()};
      cpu::conv2d_input_grad(input, plan, exec);
      cpu::conv2d_weight_grad(weight, plan, exec);
      expect_same_together(input, weight, plan, exec);
      for (const auto act : {spfde::Activation::none, spfde::Activation::relu, spfde::Activation::relu6})
        for (const bool residual : {false, true})
          expect_same_with_norm(forward, input, weight, act, residual, plan, exec);
    } else {
      const spfde::BlockIndex index{c.height, c.width, unit_ptr.data(), unit_col.data()};
      cpu::conv2d_blocks({.shape = shape,
                          .index = index,
                          .values = values.data(),
                          .bias = bias.data(),
                          .x = x.data(),
                          .y = got_y.data(),
                          .x_channels_last = x_last,
                          .y_channels_last = y_last},
                         plan, exec);
      cpu::conv2d_blocks_input_grad({.shape = shape,
                                     .index = index,
                                     .values = values.data(),
                                     .dy = dy.data(),
                                     .dx = got_dx.data(),
                                     .dy_channels_last = y_last,
                                     .dx_channels_last = x_last},
                                    plan, exec);
      cpu::conv2d_blocks_weight_grad({.shape = shape,
                                      .capacity = capacity,
                                      .index = index,
                                      .dy = dy.data(),
                                      .x = x.data(),
                                      .dy_channels_last = y_last,
                                      .x_channels_last = x_last,
                                      .dvalues = got_dvalues.data(),
                                      .dbias = got_dbias.data()},
                                     plan, exec);
    }
    const std::string format = std::string(x_last ? ", x" : "") + (y_last ? ", y" : "") + ": ";
    expect_close(name + format + "y", got_y, y);
    expect_close(name + format + "dx", got_dx, dx);
    expect_close(name + format + "dvalues", got_dvalues, dvalues);
    expect_close(name + format + "dbias", got_dbias, dbias);
  }

  // Both gradients in one call are to the bit those that are there already.
  void expect_same_together(spfde::Conv2dInputGradArgs input, spfde::Conv2dWeightGradArgs weight,
                            const cpu::Conv2dPlan& plan, const spfde::Exec& exec) const {
    Floats dx = unwritten(x.size()), dvalues = unwritten(capacity), dbias = unwritten(c.out);
    const Floats* together[] = {&dx, &dvalues, &dbias};
    const void* apart[] = {input.dx, weight.dvalues, weight.dbias};
    input.dx = dx.data();
    weight.dvalues = dvalues.data();
    weight.dbias = dbias.data();
    cpu::conv2d_gradients(input, weight, plan, exec);
    for (int i = 0; i < 3; ++i)
      expect(std::memcmp(together[i]->data(), apart[i], together[i]->size() * sizeof(float)) == 0,
             name + ": both gradients in one call");
  }

  // With a norm behind it in one call, z is to the bit what the convolution returns and the norm's statistics are close
  // to those of its own pass; the gradients are to the bit those of both calls, or nothing is written.
  void expect_same_with_norm(spfde::Conv2dArgs forward, spfde::Conv2dInputGradArgs input,
                             spfde::Conv2dWeightGradArgs weight, spfde::Activation act, bool residual,
                             const cpu::Conv2dPlan& plan, const spfde::Exec& exec) const {
    const int64_t size = dy.size(), count = size / std::max<int64_t>(1, c.out);
    if (count < 2) return;
    const float* z = static_cast<const float*>(forward.y);
    Random random(1);
    const Floats scale = normal(random, c.out), shift = normal(random, c.out), other = normal(random, size);
    Floats got_z = unwritten(size), y = unwritten(size), apart_y = unwritten(size), mean = unwritten(c.out);
    Floats var = mean, apart_mean = mean, apart_var = mean;
    spfde::NormActArgs norm{.shape = {c.batch, c.out, shape.out_h * shape.out_w, forward.y_channels_last},
                            .act = act,
                            .batch_statistics = true,
                            .eps = 1e-3,
                            .momentum = 0.1,
                            .weight = scale.data(),
                            .bias = shift.data(),
                            .x = z,
                            .residual = residual ? other.data() : nullptr,
                            .mean = apart_mean.data(),
                            .var = apart_var.data(),
                            .y = apart_y.data()};
    cpu::norm_act(norm, exec);
    forward.y = got_z.data();
    norm.x = got_z.data(), norm.mean = mean.data(), norm.var = var.data(), norm.y = y.data();
    cpu::conv2d_norm_act(forward, norm, plan, exec);
    expect(std::memcmp(got_z.data(), z, size * sizeof(float)) == 0, name + ": z of a norm");
    for (int64_t o = 0; o < c.out; ++o) {
      const double spread = 1e-6 * (std::fabs(apart_mean[o]) + std::sqrt(apart_var[o]));
      expect(std::fabs(mean[o] - apart_mean[o]) <= spread, name + ": mean of a norm");
      expect(std::fabs(var[o] - apart_var[o]) <= 2e-6 * apart_var[o] + spread * spread, name + ": variance of a norm");
    }

    const bool keep_y = residual && act != spfde::Activation::none;
    Floats dz = unwritten(size), results[2][6];
    for (auto& part : results)
      part[0] = unwritten(x.size()), part[1] = unwritten(capacity), part[2] = unwritten(c.out),
      part[3] = unwritten(keep_y ? size : 0), part[4] = unwritten(c.out), part[5] = unwritten(c.out);
    spfde::NormActGradArgs grad{.shape = norm.shape,
                                .act = act,
                                .batch_statistics = true,
                                .eps = norm.eps,
                                .weight = scale.data(),
                                .bias = shift.data(),
                                .mean = mean.data(),
                                .var = var.data(),
                                .x = z,
                                .y = keep_y ? y.data() : nullptr,
                                .dy = dy.data()};
    const auto into = [&](Floats* part) {
      input.dx = part[0].data(), weight.dvalues = part[1].data(), weight.dbias = part[2].data();
      grad.dresidual = keep_y ? part[3].data() : nullptr;
      grad.dweight = part[4].data(), grad.dbias = part[5].data();
    };
    into(results[0]);
    input.dy = weight.dy = nullptr;
    const bool done = cpu::conv2d_norm_act_grad(grad, input, weight, plan, exec);
    if (!done) return expect(std::isnan(results[0][4][0]), name + ": nothing written of a norm");
    into(results[1]);
    grad.dx = dz.data();
    cpu::norm_act_grad(grad, exec);
    input.dy = weight.dy = dz.data();
    cpu::conv2d_gradients(input, weight, plan, exec);
    for (int i = 0; i < 6; ++i)
      expect(results[1][i].empty() ||  // memcmp takes no null pointer
                 std::memcmp(results[0][i].data(), results[1][i].data(), results[1][i].size() * sizeof(float)) == 0,
             name + ": gradients with a norm " + std::to_string(i));
  }

  // The transposed index of conv2d.h: rows are (input channel, residue of the tap modulo the stride).
  struct Transposed {
    std::vector<int32_t> ptr, col, perm;
  };
  Transposed transposed() const {
    const int64_t group_out = c.out / c.groups, rows = c.in * c.stride_h * c.stride_w;
    std::vector<std::array<int64_t, 3>> order;  // row, column, place in values
    for (const Weight& w : weights) {
      const int64_t channel = w.row / group_out * group_in + w.col / taps;
      const int64_t tap = w.col % taps, i = tap / c.kernel_w, j = tap % c.kernel_w;
      const int64_t row =
          (channel * c.stride_h + i * c.dilation_h % c.stride_h) * c.stride_w + j * c.dilation_w % c.stride_w;
      order.push_back({row, w.row % group_out * taps + tap, w.place});
    }
    std::sort(order.begin(), order.end());
    Transposed t{std::vector<int32_t>(rows + 1, 0), {}, {}};
    for (const auto& [row, column, from] : order) {
      ++t.ptr[row + 1];
      t.col.push_back(static_cast<int32_t>(column));
      t.perm.push_back(static_cast<int32_t>(from));
    }
    for (int64_t r = 0; r < rows; ++r) t.ptr[r + 1] += t.ptr[r];
    return t;
  }
};

}  // namespace

std::vector<Run> conv2d_cases() {
  std::vector<Run> runs;
  int number = 0;
  for (const Case& size : kCases) {
    const Conv conv(size, ++number);
    for (int format = 0; format < 4; ++format) runs.push_back([=] { conv.run(format & 1, format & 2); });
  }
  return runs;
}
