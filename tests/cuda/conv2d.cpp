// conv2d, its input gradient and its weight gradient, in both memory formats.
#include "cases.h"
#include "cuda/ops.h"
#include "images.h"

namespace {

using namespace test;
namespace cuda = spfde::cuda;

struct Problem : Convolution {
  double density;
  bool x_last, y_last;
  int multiprocessors = 1;
};

struct Weight {
  int64_t row, channel, i, j;  // channel: of the image
};

template <typename T>
class Conv {
 public:
  explicit Conv(const Problem& problem) : p_(problem), shape_(problem.shape()) {
    Random random(5);
    const int64_t taps = p_.kernel_h * p_.kernel_w, group_in = p_.in / p_.groups, group_out = p_.out / p_.groups;
    mask_ = mask(random, p_.out, group_in * taps, p_.density);
    mask_.col.shrink_to_fit();
    for (int64_t r = 0; r < p_.out; ++r)
      for (int32_t k = mask_.ptr[r]; k < mask_.ptr[r + 1]; ++k)
        weights_.push_back({r, r / group_out * group_in + mask_.col[k] / taps, mask_.col[k] % taps / p_.kernel_w,
                            mask_.col[k] % p_.kernel_w});
    transpose();
    values_ = drawn<T>(random, mask_.count());
    bias_ = drawn<T>(random, p_.out);
    x_ = drawn<T>(random, p_.batch * p_.in * p_.in_h * p_.in_w);
    dy_ = drawn<T>(random, p_.batch * p_.out * shape_.out_h * shape_.out_w);
  }

  void run(const std::string& name) const {
    const int64_t capacity = mask_.count() + 3;
    Sums y(dy_.size()), dx(x_.size()), dvalues(capacity), dbias(p_.out);
    for (int64_t n = 0; n < p_.batch; ++n)
      for (int64_t o = 0; o < p_.out; ++o)
        for (int64_t h = 0; h < shape_.out_h; ++h)
          for (int64_t w = 0; w < shape_.out_w; ++w) {
            y[y_at(n, o, h, w)].add(as_double(bias_[o]));
            dbias[o].add(as_double(dy_[y_at(n, o, h, w)]));
          }
    for (size_t k = 0; k < weights_.size(); ++k) {
      const Weight& weight = weights_[k];
      for_each_meeting(shape_, weight.i, weight.j, [&](int64_t n, int64_t h, int64_t w, int64_t in_h, int64_t in_w) {
        const int64_t from = x_at(n, weight.channel, in_h, in_w), to = y_at(n, weight.row, h, w);
        y[to].add(as_double(values_[k]) * as_double(x_[from]));
        dx[from].add(as_double(values_[k]) * as_double(dy_[to]));
        dvalues[k].add(as_double(x_[from]) * as_double(dy_[to]));
      });
    }
    auto got_y = nowhere_written<T>(y.size()), got_dx = nowhere_written<T>(dx.size());
    auto got_dvalues = nowhere_written<T>(capacity), got_dbias = nowhere_written<T>(p_.out);
    constexpr auto dtype = Stored<T>::dtype;
    cuda::conv2d({.shape = shape_,
                  .row_ptr = mask_.ptr.data(),
                  .col = mask_.col.data(),
                  .values = values_.data(),
                  .bias = bias_.data(),
                  .x = x_.data(),
                  .y = got_y.data(),
                  .x_channels_last = p_.x_last,
                  .y_channels_last = p_.y_last,
                  .dtype = dtype},
                 {.device = 0});
    expect_sums(name, got_y, y);
    ended(name, y);
    cuda::conv2d_input_grad({.shape = shape_,
                             .row_ptr = t_ptr_.data(),
                             .col = t_col_.data(),
                             .perm = perm_.data(),
                             .values = values_.data(),
                             .dy = dy_.data(),
                             .dx = got_dx.data(),
                             .dy_channels_last = p_.y_last,
                             .dx_channels_last = p_.x_last,
                             .dtype = dtype},
                            {.device = 0});
    expect_sums(name + " input", got_dx, dx);
    const spfde::Conv2dWeightGradArgs args{.shape = shape_,
                                           .capacity = capacity,
                                           .row_ptr = mask_.ptr.data(),
                                           .col = mask_.col.data(),
                                           .dy = dy_.data(),
                                           .x = x_.data(),
                                           .dy_channels_last = p_.y_last,
                                           .x_channels_last = p_.x_last,
                                           .dvalues = got_dvalues.data(),
                                           .dbias = got_dbias.data(),
                                           .dtype = dtype};
    auto scratch = unwritten(cuda::conv2d_weight_grad_scratch(args, p_.multiprocessors) / 4);
    cuda::conv2d_weight_grad(args, p_.multiprocessors, scratch.data(), {.device = 0});
    expect_sums(name + " weight", got_dvalues, dvalues);
    expect_sums(name + " bias", got_dbias, dbias);
  }

 private:
  // With an epilogue instead of the bias; y: the sums with it.
  void ended(const std::string& name, Sums y) const {
    Random random(5);
    const auto scale = normal(random, p_.out), shift = normal(random, p_.out);
    const auto residual = drawn<T>(random, y.size());
    auto got = nowhere_written<T>(y.size());
    cuda::conv2d({.shape = shape_,
                  .row_ptr = mask_.ptr.data(),
                  .col = mask_.col.data(),
                  .values = values_.data(),
                  .x = x_.data(),
                  .y = got.data(),
                  .x_channels_last = p_.x_last,
                  .y_channels_last = p_.y_last,
                  .dtype = Stored<T>::dtype,
                  .epilogue = {scale.data(), shift.data(), residual.data(), spfde::Activation::relu6}},
                 {.device = 0});
    for (int64_t n = 0; n < p_.batch; ++n)
      for (int64_t c = 0; c < p_.out; ++c)
        for (int64_t h = 0; h < shape_.out_h; ++h)
          for (int64_t w = 0; w < shape_.out_w; ++w) {
            const int64_t at = y_at(n, c, h, w);
            const double s = scale[c], r = as_double(residual[at]), z = s * (y[at].value - as_double(bias_[c]));
            y[at] = {std::clamp(z + shift[c] + r, 0.0, 6.0),
                     std::fabs(s) * y[at].size + std::fabs(shift[c]) + std::fabs(r)};
          }
    expect_sums(name + " ended", got, y);
  }

  int64_t x_at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return place(n, c, h, w, p_.in, p_.in_h, p_.in_w, p_.x_last);
  }
  int64_t y_at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return place(n, c, h, w, p_.out, shape_.out_h, shape_.out_w, p_.y_last);
  }

  // By channel and the residues of the tap, see spfde/conv2d.h.
  void transpose() {
    const int64_t group_out = p_.out / p_.groups, rows = p_.in * p_.stride_h * p_.stride_w;
    struct Entry {
      int64_t row, col, place;
    };
    std::vector<Entry> entries;
    for (size_t k = 0; k < weights_.size(); ++k) {
      const Weight& w = weights_[k];
      entries.push_back({(w.channel * p_.stride_h + w.i * p_.dilation_h % p_.stride_h) * p_.stride_w +
                             w.j * p_.dilation_w % p_.stride_w,
                         (w.row % group_out * p_.kernel_h + w.i) * p_.kernel_w + w.j, static_cast<int64_t>(k)});
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return std::pair(a.row, a.col) < std::pair(b.row, b.col); });
    t_ptr_.assign(rows + 1, 0);
    for (const Entry& e : entries) {
      ++t_ptr_[e.row + 1];
      t_col_.push_back(static_cast<int32_t>(e.col));
      perm_.push_back(static_cast<int32_t>(e.place));
    }
    for (int64_t r = 0; r < rows; ++r) t_ptr_[r + 1] += t_ptr_[r];
    t_col_.shrink_to_fit();
    perm_.shrink_to_fit();
  }

  Problem p_;
  spfde::Conv2dShape shape_;
  Mask mask_;
  std::vector<Weight> weights_;
  std::vector<int32_t> t_ptr_, t_col_, perm_;
  Array<T> values_, bias_, x_, dy_;
};

}  // namespace

std::vector<Case> conv2d_cases() {
  const std::vector<Problem> problems = {
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1.0, false, false},
      {2, 3, 8, 9, 5, 3, 3, 1, 1, 1, 1, 1, 1, 0.4, false, false},
      {2, 9, 6, 7, 131, 3, 3, 1, 1, 1, 1, 1, 1, 0.2, true, true},
      {2, 8, 9, 7, 6, 3, 3, 2, 2, 1, 1, 1, 1, 0.5, false, true},
      {1, 6, 8, 11, 9, 3, 2, 3, 1, 2, 2, 3, 3, 0.5, true, false},
      {1, 4, 9, 9, 4, 4, 3, 2, 3, 3, 1, 2, 2, 0.6, false, false},
      {2, 5, 5, 6, 7, 3, 3, 1, 1, 1, 1, 1, 1, 0.0, false, false},
      {3, 6, 7, 8, 6, 1, 1, 2, 2, 0, 1, 1, 6, 0.6, true, true},         // pixels that no tap meets
      {9, 2, 16, 16, 3, 3, 3, 1, 1, 1, 1, 1, 1, 0.5, false, false, 8},  // the batch in parts
      {0, 2, 5, 5, 3, 3, 3, 1, 1, 1, 1, 1, 1, 0.5, false, false},
  };
  std::vector<Case> cases;
  for (size_t i = 0; i < problems.size(); ++i) {
    const std::string name = "conv2d " + std::to_string(i);
    cases.push_back({name + " float32", [=] { Conv<float>(problems[i]).run(name + " float32"); }});
    cases.push_back({name + " float16", [=] { Conv<__half>(problems[i]).run(name + " float16"); }});
    cases.push_back({name + " bfloat16", [=] { Conv<__nv_bfloat16>(problems[i]).run(name + " bfloat16"); }});
  }
  return cases;
}
