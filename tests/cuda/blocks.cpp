// block_spmm in both directions, and block_sddmm.
#include "cases.h"
#include "cuda/ops.h"
#include "tiles.h"

namespace {

using namespace test;
namespace cuda = spfde::cuda;

// W [rows, cols] in blocks [height, width], so many rows of which stand together in each direction.
struct Problem {
  int64_t rows, cols, tokens, height, width, together, t_together;
  double density;
  int64_t longest = 1000;  // entries of an item of work
  int multiprocessors = 1;

  std::string name() const {
    return std::to_string(rows) + "x" + std::to_string(cols) + " in " + std::to_string(height) + "x" +
           std::to_string(width) + " tokens " + std::to_string(tokens) + " together " + std::to_string(together);
  }
};

// `tf32`: factors are whole numbers of few bits, which TF32 holds.
template <typename T>
class Blocks {
 public:
  Blocks(const Problem& problem, bool tf32) : p_(problem), tf32_(tf32) {
    Random random(17);
    const int64_t rows = (p_.rows + p_.height - 1) / p_.height, cols = (p_.cols + p_.width - 1) / p_.width;
    const Mask w = mask(random, rows, cols, p_.density);
    for (int64_t r = 0; r < rows; ++r)
      for (int32_t k = w.ptr[r]; k < w.ptr[r + 1]; ++k) stored_.push_back({r, w.col[k], k});
    capacity_ = w.count() + 2;
    values_ = random_array(random, capacity_ * p_.height * p_.width);
    for_each_weight([&](int64_t row, int64_t col, int64_t at) {
      if (row >= p_.rows || col >= p_.cols) values_[at] = spfde::cuda::from_float<T>(0);
    });
    bias_ = random_array(random, p_.rows);
    x_ = random_array(random, p_.tokens * p_.cols);
    dy_ = random_array(random, p_.tokens * p_.rows);
  }

  void run(const std::string& name) const {
    Sums y(dy_.size()), dx(x_.size()), dvalues(values_.size()), dbias(p_.rows);
    for (int64_t t = 0; t < p_.tokens; ++t)
      for (int64_t r = 0; r < p_.rows; ++r) {
        y[t * p_.rows + r].add(as_double(bias_[r]));
        dbias[r].add(as_double(dy_[t * p_.rows + r]));
      }
    for_each_weight([&](int64_t row, int64_t col, int64_t at) {
      if (row >= p_.rows || col >= p_.cols) return;
      for (int64_t t = 0; t < p_.tokens; ++t) {
        const int64_t from = t * p_.cols + col, to = t * p_.rows + row;
        y[to].add(as_double(values_[at]) * as_double(x_[from]));
        dx[from].add(as_double(values_[at]) * as_double(dy_[to]));
        dvalues[at].add(as_double(x_[from]) * as_double(dy_[to]));
      }
    });
    product(name, false, x_, bias_.data(), y);
    product(name + " input", true, dy_, nullptr, dx);
    weight_gradient(name, dvalues, dbias);
  }

 private:
  Array<T> random_array(Random& random, int64_t count) const {
    if (!tf32_) return drawn<T>(random, count);
    Floats whole(count);
    for (float& value : whole) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    return stored<T>(whole);
  }

  // f(row, column, place in values) of every weight of a stored block.
  template <typename F>
  void for_each_weight(F f) const {
    for (const StoredBlock& block : stored_)
      for (int64_t i = 0; i < p_.height; ++i)
        for (int64_t j = 0; j < p_.width; ++j)
          f(block.row * p_.height + i, block.col * p_.width + j, (block.slot * p_.height + i) * p_.width + j);
  }

  void product(const std::string& name, bool transposed, const Array<T>& x, const T* bias, const Sums& wanted) const {
    auto y = nowhere_written<T>(wanted.size());
    const TilesOf tiles = this->tiles(transposed);
    const spfde::BlockSpmmArgs args{.outer = transposed ? p_.cols : p_.rows,
                                    .inner = transposed ? p_.rows : p_.cols,
                                    .batch = p_.tokens,
                                    .height = p_.height,
                                    .width = p_.width,
                                    .transposed = transposed,
                                    .tiles = tiles.tiles(),
                                    .values = values_.data(),
                                    .bias = bias,
                                    .x = x.data(),
                                    .y = y.data(),
                                    .dtype = Stored<T>::dtype,
                                    .tf32 = tf32_};
    auto scratch = unwritten(cuda::block_spmm_scratch(args) / 4);
    cuda::block_spmm(args, scratch.data(), {.device = 0});
    expect_sums(name, y, wanted);
  }

  void weight_gradient(const std::string& name, const Sums& wanted, const Sums& of_rows) const {
    auto dvalues = nowhere_written<T>(wanted.size()), dbias = nowhere_written<T>(of_rows.size());
    const TilesOf tiles = this->tiles(false);
    const auto units = static_cast<int32_t>(static_cast<int64_t>(stored_.size()) * p_.width);
    const spfde::BlockSddmmArgs args{.rows = p_.rows,
                                     .cols = p_.cols,
                                     .batch = p_.tokens,
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
    auto scratch = unwritten(cuda::block_sddmm_scratch(args, p_.multiprocessors) / 4);
    cuda::block_sddmm(args, p_.multiprocessors, scratch.data(), {.device = 0});
    expect_sums(name + " weight", dvalues, wanted);
    expect_sums(name + " bias", dbias, of_rows);
  }

  TilesOf tiles(bool transposed) const {
    std::vector<StoredBlock> blocks = stored_;
    if (transposed)
      for (StoredBlock& block : blocks) std::swap(block.row, block.col);
    const int64_t outer = transposed ? p_.cols : p_.rows, out = transposed ? p_.width : p_.height;
    return TilesOf(blocks, (outer + out - 1) / out, transposed ? p_.t_together : p_.together,
                   128 / (transposed ? p_.height : p_.width), p_.longest);
  }

  Problem p_;
  bool tf32_;
  int64_t capacity_;
  std::vector<StoredBlock> stored_;
  Array<T> values_, bias_, x_, dy_;
};

}  // namespace

std::vector<Case> block_cases() {
  const std::vector<Problem> problems = {
      {16, 16, 1, 16, 16, 1, 1, 1.0},
      {48, 80, 130, 16, 16, 1, 1, 0.5},    // past one tile of tokens, an odd number of entries
      {72, 56, 9, 16, 32, 2, 1, 0.6, 2},   // ragged: no multiple of the block; groups that are cut
      {37, 53, 5, 32, 16, 1, 4, 0.7},      // rows that are not aligned
      {128, 64, 3, 16, 16, 8, 4, 0.3, 1},  // a group of 128 rows
      {64, 192, 17, 64, 64, 1, 2, 0.6},
      {256, 128, 7, 128, 128, 1, 1, 0.7},
      {16, 32, 600, 16, 16, 1, 1, 0.8, 1000, 2},  // tokens in parts
      {40, 40, 4, 16, 16, 1, 1, 0.0},             // nothing stored
      {32, 32, 0, 16, 16, 1, 1, 0.5},             // nothing to multiply
  };
  std::vector<Case> cases;
  for (const Problem& p : problems) {
    const std::string name = "blocks " + p.name();
    cases.push_back({name + " float16", [=] { Blocks<__half>(p, false).run(name + " float16"); }});
    cases.push_back({name + " bfloat16", [=] { Blocks<__nv_bfloat16>(p, false).run(name + " bfloat16"); }});
    cases.push_back({name + " float32", [=] { Blocks<float>(p, false).run(name + " float32"); }});
    cases.push_back({name + " tf32", [=] { Blocks<float>(p, true).run(name + " tf32"); }});
  }
  return cases;
}
