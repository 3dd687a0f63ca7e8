// block_conv2d in both directions, and block_conv2d_weight_grad.
#include "cases.h"
#include "cuda/ops.h"
#include "images.h"
#include "tiles.h"

namespace {

using namespace test;
namespace cuda = spfde::cuda;

// W in blocks [height, width], so many rows of which stand together in each direction.
struct Problem : Convolution {
  int64_t height, width, together, t_together;
  double density;
  int multiprocessors = 1;
};

// `tf32`: factors are whole numbers of few bits, which TF32 holds.
template <typename T>
class Blocks {
 public:
  Blocks(const Problem& problem, bool tf32) : p_(problem), shape_(problem.shape()), tf32_(tf32) {
    Random random(29);
    const Mask w = mask(random, ceil_div(p_.out, p_.height), channel_blocks() * taps(), p_.density);
    for (int64_t r = 0; r + 1 < static_cast<int64_t>(w.ptr.size()); ++r)
      for (int32_t k = w.ptr[r]; k < w.ptr[r + 1]; ++k) stored_.push_back({r, w.col[k], k});
    capacity_ = w.count() + 2;
    values_ = random_array(random, capacity_ * p_.height * p_.width);
    for_each_weight([&](int64_t row, int64_t channel, int64_t, int64_t at) {
      if (row >= p_.out || channel >= group_in()) values_[at] = spfde::cuda::from_float<T>(0);
    });
    bias_ = random_array(random, p_.out);
    x_ = random_array(random, p_.batch * p_.in * p_.in_h * p_.in_w);
    dy_ = random_array(random, p_.batch * p_.out * shape_.out_h * shape_.out_w);
  }

  void run(const std::string& name) const {
    Sums y(dy_.size()), dx(x_.size()), dvalues(values_.size()), dbias(p_.out);
    for (size_t i = 0; i < dy_.size(); ++i) {
      y[i].add(as_double(bias_[i % p_.out]));
      dbias[i % p_.out].add(as_double(dy_[i]));
    }
    for_each_weight([&](int64_t row, int64_t in_group, int64_t tap, int64_t at) {
      if (row >= p_.out || in_group >= group_in()) return;
      const int64_t channel = row / (p_.out / p_.groups) * group_in() + in_group;
      for_each_meeting(shape_, tap / p_.kernel_w, tap % p_.kernel_w,
                       [&](int64_t n, int64_t h, int64_t w, int64_t in_h, int64_t in_w) {
                         const int64_t from = place(n, channel, in_h, in_w, p_.in, p_.in_h, p_.in_w, true);
                         const int64_t to = place(n, row, h, w, p_.out, shape_.out_h, shape_.out_w, true);
                         y[to].add(as_double(values_[at]) * as_double(x_[from]));
                         dx[from].add(as_double(values_[at]) * as_double(dy_[to]));
                         dvalues[at].add(as_double(x_[from]) * as_double(dy_[to]));
                       });
    });
    product(name, false, x_, bias_.data(), y);
    product(name + " input", true, dy_, nullptr, dx);
    weight_gradient(name, dvalues, dbias);
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  int64_t taps() const { return p_.kernel_h * p_.kernel_w; }
  int64_t group_in() const { return p_.in / p_.groups; }
  int64_t channel_blocks() const { return ceil_div(group_in(), p_.width); }

  Array<T> random_array(Random& random, int64_t count) const {
    if (!tf32_) return drawn<T>(random, count);
    Floats whole(count);
    for (float& value : whole) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    return stored<T>(whole);
  }

  // f(output channel, input channel of its group, tap, place in values) of every weight of a stored block.
  template <typename F>
  void for_each_weight(F f) const {
    for (const StoredBlock& block : stored_)
      for (int64_t i = 0; i < p_.height; ++i)
        for (int64_t j = 0; j < p_.width; ++j)
          f(block.row * p_.height + i, block.col / taps() * p_.width + j, block.col % taps(),
            (block.slot * p_.height + i) * p_.width + j);
  }

  void product(const std::string& name, bool transposed, const Array<T>& x, const T* bias, const Sums& wanted) const {
    auto y = nowhere_written<T>(wanted.size());
    const TilesOf tiles = transposed ? transposed_tiles() : this->tiles();
    cuda::block_conv2d({.shape = shape_,
                        .height = p_.height,
                        .width = p_.width,
                        .transposed = transposed,
                        .tiles = tiles.tiles(),
                        .values = values_.data(),
                        .bias = bias,
                        .x = x.data(),
                        .y = y.data(),
                        .dtype = Stored<T>::dtype,
                        .tf32 = tf32_},
                       {.device = 0});
    expect_sums(name, y, wanted);
  }

  void weight_gradient(const std::string& name, const Sums& wanted, const Sums& of_rows) const {
    auto dvalues = nowhere_written<T>(wanted.size()), dbias = nowhere_written<T>(of_rows.size());
    const TilesOf tiles = this->tiles();
    const auto units = static_cast<int32_t>(static_cast<int64_t>(stored_.size()) * p_.width);
    const spfde::BlockConv2dWeightGradArgs args{.shape = shape_,
                                                .height = p_.height,
                                                .width = p_.width,
                                                .capacity = capacity_,
                                                .tiles = tiles.tiles(),
                                                .unit_count = &units,
                                                .dy = dy_.data(),
                                                .x = x_.data(),
                                                .dvalues = dvalues.data(),
                                                .dbias = dbias.data(),
                                                .dtype = Stored<T>::dtype,
                                                .tf32 = tf32_};
    auto scratch = unwritten(cuda::block_conv2d_weight_grad_scratch(args, p_.multiprocessors) / 4);
    cuda::block_conv2d_weight_grad(args, p_.multiprocessors, scratch.data(), {.device = 0});
    expect_sums(name + " weight", dvalues, wanted);
    expect_sums(name + " bias", dbias, of_rows);
  }

  TilesOf tiles() const { return TilesOf(stored_, ceil_div(p_.out, p_.height), p_.together, 128 / p_.width, kWhole); }

  // See spfde/block_conv2d.h.
  TilesOf transposed_tiles() const {
    const int64_t blocks = ceil_div(channel_blocks(), p_.t_together) * p_.t_together;
    std::vector<StoredBlock> turned;
    for (const StoredBlock& block : stored_) {
      const int64_t tap = block.col % taps(), group = block.row * p_.height / (p_.out / p_.groups);
      const int64_t residue_h = tap / p_.kernel_w * p_.dilation_h % p_.stride_h;
      const int64_t residue_w = tap % p_.kernel_w * p_.dilation_w % p_.stride_w;
      const int64_t part = (residue_h * p_.stride_w + residue_w) * p_.groups + group;
      turned.push_back({part * blocks + block.col / taps(), block.row * taps() + tap, block.slot});
    }
    return TilesOf(turned, p_.stride_h * p_.stride_w * p_.groups * blocks, p_.t_together, 128 / p_.height, kWhole);
  }

  static constexpr int64_t kWhole = int64_t{1} << 30;  // groups are not cut

  Problem p_;
  spfde::Conv2dShape shape_;
  bool tf32_;
  int64_t capacity_;
  std::vector<StoredBlock> stored_;
  Array<T> values_, bias_, x_, dy_;
};

}  // namespace

std::vector<Case> block_conv2d_cases() {
  const std::vector<Problem> problems = {
      {1, 16, 1, 1, 16, 1, 1, 1, 1, 0, 1, 1, 1, 16, 16, 1, 1, 1.0},
      {2, 32, 8, 9, 48, 3, 3, 1, 1, 1, 1, 1, 1, 16, 16, 1, 1, 0.5},  // past one tile of pixels
      {2, 24, 7, 6, 40, 3, 3, 2, 2, 1, 1, 1, 1, 16, 32, 2, 2, 0.6},  // ragged: no multiple of the block; a stride
      {1, 19, 6, 7, 21, 3, 2, 3, 1, 2, 2, 3, 1, 32, 16, 1, 4, 0.7},  // channels that are not aligned, dilation
      {1, 64, 5, 4, 128, 2, 3, 1, 2, 1, 2, 1, 1, 64, 64, 2, 1, 0.6},
      {2, 128, 3, 3, 128, 3, 3, 1, 1, 1, 1, 1, 1, 128, 128, 1, 1, 0.4},
      {2, 48, 6, 5, 64, 3, 3, 2, 1, 1, 1, 1, 2, 16, 16, 2, 2, 0.6},  // groups of the convolution
      {1, 30, 5, 6, 32, 3, 3, 1, 2, 1, 1, 1, 2, 16, 16, 1, 2,
       0.8},  // the same, of 15 channels: no whole block, not aligned
      {3, 32, 7, 8, 16, 1, 1, 2, 2, 0, 1, 1, 1, 16, 16, 1, 1, 0.8},       // pixels that no tap meets
      {3, 16, 15, 15, 16, 3, 3, 1, 1, 1, 1, 1, 1, 16, 16, 1, 1, 0.5, 2},  // pixels in parts
      {1, 32, 4, 4, 32, 3, 3, 1, 1, 1, 1, 1, 1, 16, 16, 1, 1, 0.0},       // nothing stored
      {0, 16, 4, 4, 16, 3, 3, 1, 1, 1, 1, 1, 1, 16, 16, 1, 1, 0.5},       // nothing to multiply
  };
  std::vector<Case> cases;
  for (size_t i = 0; i < problems.size(); ++i) {
    const std::string name = "conv blocks " + std::to_string(i);
    cases.push_back({name + " float16", [=] { Blocks<__half>(problems[i], false).run(name + " float16"); }});
    cases.push_back({name + " bfloat16", [=] { Blocks<__nv_bfloat16>(problems[i], false).run(name + " bfloat16"); }});
    cases.push_back({name + " float32", [=] { Blocks<float>(problems[i], false).run(name + " float32"); }});
    cases.push_back({name + " tf32", [=] { Blocks<float>(problems[i], true).run(name + " tf32"); }});
  }
  return cases;
}
