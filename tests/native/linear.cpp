// spmm, sddmm, their block forms, and the way between stored values and a dense weight.
#include <algorithm>
#include <array>

#include "cases.h"
#include "check.h"
#include "cpu/ops.h"

using namespace test;
namespace cpu = spfde::cpu;

namespace {

// Blocks of height x width; 1 x 1 are single weights. `images` x `positions` is the batch.
struct Case {
  int64_t rows, cols, images, positions, height, width;
  double density;
  int threads;
};

const Case kCases[] = {
    {1, 1, 1, 1, 1, 1, 1.0, 1},       {5, 3, 2, 1, 1, 1, 0.5, 1},    {64, 65, 33, 1, 1, 1, 0.1, 2},
    {100, 257, 70, 1, 1, 1, 0.05, 2}, {17, 31, 3, 13, 1, 1, 0.3, 2}, {33, 64, 9, 1, 1, 1, 0.0, 1},
    {8, 700, 64, 1, 1, 1, 0.7, 2},    {12, 16, 7, 1, 4, 1, 0.3, 1},  {13, 32, 33, 1, 4, 1, 0.2, 2},
    {18, 24, 5, 9, 3, 2, 0.4, 2},     {65, 64, 64, 1, 8, 1, 0.1, 2}, {30, 64, 17, 1, 4, 4, 0.3, 1},
    {40, 48, 20, 1, 16, 3, 0.5, 2},
};

struct Linear {
  Case size;
  std::string name;
  Mask blocks;
  std::vector<int32_t> unit_ptr, unit_col;
  Floats values, bias, x, dy;
  int64_t batch, capacity;

  Linear(const Case& c, int number) : size(c), name("linear " + std::to_string(number)) {
    Random random(number);
    const int64_t block_rows = (c.rows + c.height - 1) / c.height;
    blocks = mask(random, block_rows, c.cols / c.width, c.density);
    for (int32_t start : blocks.ptr) unit_ptr.push_back(static_cast<int32_t>(start * c.width));
    for (int32_t column : blocks.col)
      for (int64_t j = 0; j < c.width; ++j) unit_col.push_back(static_cast<int32_t>(column * c.width + j));
    batch = c.images * c.positions;
    capacity = blocks.count() + 3;
    values = normal(random, blocks.count() * c.height * c.width);
    bias = normal(random, c.rows);
    x = normal(random, batch * c.cols);
    dy = normal(random, batch * c.rows);
  }

  int64_t place(int64_t sample, int64_t channel, int64_t channels) const {
    return (sample / size.positions * channels + channel) * size.positions + sample % size.positions;
  }

  // Calls f(row, column, place in values) for every stored weight of a row that exists.
  template <typename F>
  void each_weight(F f) const {
    for (size_t b = 0; b + 1 < blocks.ptr.size(); ++b)
      for (int32_t k = blocks.ptr[b]; k < blocks.ptr[b + 1]; ++k)
        for (int64_t i = 0; i < size.height && static_cast<int64_t>(b) * size.height + i < size.rows; ++i)
          for (int64_t j = 0; j < size.width; ++j)
            f(b * size.height + i, blocks.col[k] * size.width + j, (k * size.height + i) * size.width + j);
  }

  void run() const {
    const Case& c = size;
    Sums y(batch * c.rows), dx(batch * c.cols), dvalues(capacity * c.height * c.width), dbias(c.rows);
    for (int64_t s = 0; s < batch; ++s) {
      for (int64_t r = 0; r < c.rows; ++r) {
        y[place(s, r, c.rows)].add(bias[r]);
        dbias[r].add(dy[place(s, r, c.rows)]);
      }
      each_weight([&](int64_t row, int64_t col, int64_t k) {
        const double input = x[place(s, col, c.cols)], grad = dy[place(s, row, c.rows)];
        y[place(s, row, c.rows)].add(values[k] * input);
        dx[place(s, col, c.cols)].add(values[k] * grad);
        dvalues[k].add(input * grad);
      });
    }
    Floats got_y = unwritten(y.size()), got_dx = unwritten(dx.size());
    Floats got_dvalues = unwritten(dvalues.size()), got_dbias = unwritten(c.rows);
    const spfde::Exec exec{.threads = c.threads};
    if (c.height * c.width == 1) {
      cpu::spmm({.rows = c.rows,
                 .cols = c.cols,
                 .batch = batch,
                 .positions = c.positions,
                 .row_ptr = blocks.ptr.data(),
                 .col = blocks.col.data(),
                 .perm = nullptr,
                 .values = values.data(),
                 .bias = bias.data(),
                 .x = x.data(),
                 .y = got_y.data()},
                exec);
      input_grad(got_dx);
      cpu::sddmm({.rows = c.rows,
                  .cols = c.cols,
                  .batch = batch,
                  .positions = c.positions,
                  .capacity = capacity,
                  .row_ptr = blocks.ptr.data(),
                  .col = blocks.col.data(),
                  .dy = dy.data(),
                  .x = x.data(),
                  .dvalues = got_dvalues.data(),
                  .dbias = got_dbias.data()},
                 exec);
      masked();
    } else {
      const spfde::BlockIndex index{c.height, c.width, unit_ptr.data(), unit_col.data()};
      cpu::spmm_blocks({.rows = c.rows,
                        .cols = c.cols,
                        .batch = batch,
                        .positions = c.positions,
                        .index = index,
                        .values = values.data(),
                        .bias = bias.data(),
                        .x = x.data(),
                        .y = got_y.data()},
                       exec);
      cpu::spmm_blocks_input_grad({.rows = c.rows,
                                   .cols = c.cols,
                                   .batch = batch,
                                   .positions = c.positions,
                                   .index = index,
                                   .values = values.data(),
                                   .dy = dy.data(),
                                   .dx = got_dx.data()},
                                  exec);
      cpu::sddmm_blocks({.rows = c.rows,
                         .cols = c.cols,
                         .batch = batch,
                         .positions = c.positions,
                         .capacity = capacity,
                         .index = index,
                         .dy = dy.data(),
                         .x = x.data(),
                         .dvalues = got_dvalues.data(),
                         .dbias = got_dbias.data()},
                        exec);
    }
    expect_close(name + ": y", got_y, y);
    expect_close(name + ": dx", got_dx, dx);
    expect_close(name + ": dvalues", got_dvalues, dvalues);
    expect_close(name + ": dbias", got_dbias, dbias);
  }

  // spmm by the transposed index, whose weights are reached through a permutation.
  void input_grad(Floats& dx) const {
    std::vector<std::array<int64_t, 3>> order;  // column, row, place in values
    each_weight([&](int64_t row, int64_t col, int64_t k) { order.push_back({col, row, k}); });
    std::sort(order.begin(), order.end());
    std::vector<int32_t> ptr(size.cols + 1, 0), col, perm;
    for (const auto& [column, row, from] : order) {
      ++ptr[column + 1];
      col.push_back(static_cast<int32_t>(row));
      perm.push_back(static_cast<int32_t>(from));
    }
    for (int64_t c = 0; c < size.cols; ++c) ptr[c + 1] += ptr[c];
    cpu::spmm({.rows = size.cols,
               .cols = size.rows,
               .batch = batch,
               .positions = size.positions,
               .row_ptr = ptr.data(),
               .col = col.data(),
               .perm = perm.data(),
               .values = values.data(),
               .bias = nullptr,
               .x = dy.data(),
               .y = dx.data()},
              {.threads = size.threads});
  }

  void masked() const {
    Floats dense(size.rows * size.cols, 0), back = unwritten(capacity), wanted = values;
    wanted.resize(capacity, 0);
    cpu::scatter({.rows = size.rows,
                  .cols = size.cols,
                  .row_ptr = blocks.ptr.data(),
                  .col = blocks.col.data(),
                  .values = values.data(),
                  .dense = dense.data()},
                 {.threads = size.threads});
    bool right = true;
    each_weight([&](int64_t row, int64_t col, int64_t k) { right &= dense[row * size.cols + col] == values[k]; });
    expect(right, name + ": scatter");
    cpu::gather({.rows = size.rows,
                 .cols = size.cols,
                 .capacity = capacity,
                 .row_ptr = blocks.ptr.data(),
                 .col = blocks.col.data(),
                 .dense = dense.data(),
                 .values = back.data()},
                {.threads = size.threads});
    expect(back == wanted, name + ": gather");
  }
};

}  // namespace

std::vector<Run> linear_cases() {
  std::vector<Run> runs;
  for (const Case& size : kCases) runs.push_back([linear = Linear(size, runs.size() + 1)] { linear.run(); });
  return runs;
}
