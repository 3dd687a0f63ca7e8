// spmm (with and without a permutation) and sddmm, of batches and of planes.
#include "cases.h"
#include "cuda/ops.h"

namespace {

using namespace test;
namespace cuda = spfde::cuda;

// W [rows, cols] and tokens, `images` times `positions` of them.
struct Problem {
  int64_t rows, cols, images, positions;
  double density;
  int64_t spare = 0;  // slots past the stored weights
  int multiprocessors = 1;

  int64_t tokens() const { return images * positions; }
  // Of element [token, feature] of activations with `features` of them.
  int64_t at(int64_t token, int64_t feature, int64_t features) const {
    return (token / positions * features + feature) * positions + token % positions;
  }
  std::string name() const {
    return std::to_string(rows) + "x" + std::to_string(cols) + " tokens " + std::to_string(images) + "x" +
           std::to_string(positions) + " density " + std::to_string(density).substr(0, 4);
  }
};

// The mask of a problem; every third row and every fifth column is empty, so is everything at density 0.
Mask mask_of(Random& random, const Problem& p) {
  Mask out = mask(random, p.rows, p.cols, p.density), holes;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int32_t k = out.ptr[r]; k < out.ptr[r + 1]; ++k)
      if (p.density == 1 || (r % 3 != 1 && out.col[k] % 5 != 2)) holes.col.push_back(out.col[k]);
    holes.ptr.push_back(static_cast<int32_t>(holes.col.size()));
  }
  holes.ptr.shrink_to_fit();
  holes.col.shrink_to_fit();
  return holes;
}

template <typename T>
void forward(const Problem& p, bool permuted, bool with_bias) {
  Random random(7);
  const Mask w = mask_of(random, p);
  const auto values = drawn<T>(random, w.count() + p.spare), bias = drawn<T>(random, p.rows);
  const auto x = drawn<T>(random, p.tokens() * p.cols);
  std::vector<int32_t> perm(w.count());
  for (size_t k = 0; k < perm.size(); ++k) perm[k] = static_cast<int32_t>(k);
  if (permuted) std::shuffle(perm.begin(), perm.end(), random);
  auto y = nowhere_written<T>(p.tokens() * p.rows);
  cuda::spmm({.rows = p.rows,
              .cols = p.cols,
              .batch = p.tokens(),
              .positions = p.positions,
              .row_ptr = w.ptr.data(),
              .col = w.col.data(),
              .perm = permuted ? perm.data() : nullptr,
              .values = values.data(),
              .bias = with_bias ? bias.data() : nullptr,
              .x = x.data(),
              .y = y.data(),
              .dtype = Stored<T>::dtype},
             {.device = 0});
  Sums wanted(y.size());
  for (int64_t t = 0; t < p.tokens(); ++t)
    for (int64_t r = 0; r < p.rows; ++r) {
      Sum& sum = wanted[p.at(t, r, p.rows)];
      for (int32_t k = w.ptr[r]; k < w.ptr[r + 1]; ++k)
        sum.add(as_double(values[perm[k]]) * as_double(x[p.at(t, w.col[k], p.cols)]));
      if (with_bias) sum.add(as_double(bias[r]));
    }
  expect_sums("spmm " + p.name() + " " + Stored<T>::name, y, wanted);
}

template <typename T>
void weight_gradient(const Problem& p, bool with_bias) {
  Random random(11);
  const Mask w = mask_of(random, p);
  const auto dy = drawn<T>(random, p.tokens() * p.rows), x = drawn<T>(random, p.tokens() * p.cols);
  const int64_t capacity = w.count() + p.spare;
  auto dvalues = nowhere_written<T>(capacity), dbias = nowhere_written<T>(with_bias ? p.rows : 0);
  const spfde::SddmmArgs args{.rows = p.rows,
                              .cols = p.cols,
                              .batch = p.tokens(),
                              .positions = p.positions,
                              .capacity = capacity,
                              .row_ptr = w.ptr.data(),
                              .col = w.col.data(),
                              .dy = dy.data(),
                              .x = x.data(),
                              .dvalues = dvalues.data(),
                              .dbias = with_bias ? dbias.data() : nullptr,
                              .dtype = Stored<T>::dtype};
  auto scratch = unwritten(cuda::sddmm_scratch(args, p.multiprocessors) / 4);
  cuda::sddmm(args, p.multiprocessors, scratch.data(), {.device = 0});
  Sums wanted(capacity), of_rows(dbias.size());
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t t = 0; t < p.tokens(); ++t) {
      const double g = as_double(dy[p.at(t, r, p.rows)]);
      for (int32_t k = w.ptr[r]; k < w.ptr[r + 1]; ++k) wanted[k].add(g * as_double(x[p.at(t, w.col[k], p.cols)]));
      if (with_bias) of_rows[r].add(g);
    }
  const std::string what = "sddmm " + p.name() + " " + Stored<T>::name;
  expect_sums(what, dvalues, wanted);
  expect_sums(what + " bias", dbias, of_rows);
}

template <typename T>
void add(std::vector<Case>& cases, const Problem& p, bool flag) {
  cases.push_back({"spmm " + p.name() + " " + Stored<T>::name, [=] { forward<T>(p, flag, !flag); }});
  cases.push_back({"sddmm " + p.name() + " " + Stored<T>::name, [=] { weight_gradient<T>(p, flag); }});
}

}  // namespace

std::vector<Case> linear_cases() {
  const std::vector<Problem> problems = {
      {1, 1, 1, 1, 1.0},          {7, 5, 3, 1, 0.5, 4},
      {130, 67, 131, 1, 0.2, 3},   // past one tile of rows, one panel, one tile of tokens
      {9, 300, 5, 1, 1.0},         // rows longer than a warp's queue
      {12, 131, 2, 36, 0.3, 1},    // planes whose tokens lie four by four
      {5, 70, 3, 49, 0.4},         // planes whose tokens do not
      {4, 6, 0, 1, 0.5, 2},        // nothing to multiply
      {6, 9, 2, 1, 0.0, 5},        // nothing stored
      {3, 4, 2100, 1, 0.5, 2, 8},  // the batch in parts
      {70, 130, 9, 1, 1.0, 1, 4},  // more entries than a block holds
  };
  std::vector<Case> cases;
  for (size_t i = 0; i < problems.size(); ++i) {
    add<float>(cases, problems[i], i % 2);
    add<__half>(cases, problems[i], i % 2 == 0);
    add<__nv_bfloat16>(cases, problems[i], i % 2);
  }
  return cases;
}
