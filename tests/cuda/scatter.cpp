// scatter and gather.
#include "cases.h"
#include "cuda/ops.h"

namespace {

using namespace test;
namespace cuda = spfde::cuda;

template <typename T>
void round_trip(int64_t rows, int64_t cols, double density, int64_t spare) {
  Random random(3);
  const Mask w = mask(random, rows, cols, density);
  const auto values = drawn<T>(random, w.count() + spare), before = drawn<T>(random, rows * cols);
  auto dense = before;
  cuda::scatter({.rows = rows,
                 .cols = cols,
                 .row_ptr = w.ptr.data(),
                 .col = w.col.data(),
                 .values = values.data(),
                 .dense = dense.data(),
                 .dtype = Stored<T>::dtype},
                {.device = 0});
  Sums wanted(dense.size()), back(w.count() + spare);
  for (size_t i = 0; i < dense.size(); ++i) wanted[i].add(as_double(before[i]));
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t k = w.ptr[r]; k < w.ptr[r + 1]; ++k) {
      wanted[r * cols + w.col[k]] = {};
      wanted[r * cols + w.col[k]].add(as_double(values[k]));
      back[k].add(as_double(values[k]));
    }
  const std::string what = std::to_string(rows) + "x" + std::to_string(cols) + " " + Stored<T>::name;
  expect_sums("scatter " + what, dense, wanted);
  auto read = nowhere_written<T>(w.count() + spare);
  cuda::gather({.rows = rows,
                .cols = cols,
                .capacity = w.count() + spare,
                .row_ptr = w.ptr.data(),
                .col = w.col.data(),
                .dense = dense.data(),
                .values = read.data(),
                .dtype = Stored<T>::dtype},
               {.device = 0});
  expect_sums("gather " + what, read, back);
}

}  // namespace

std::vector<Case> scatter_cases() {
  std::vector<Case> cases;
  auto add = [&](int64_t rows, int64_t cols, double density, int64_t spare) {
    const std::string name = "scatter " + std::to_string(rows) + "x" + std::to_string(cols);
    cases.push_back({name, [=] {
                       round_trip<float>(rows, cols, density, spare);
                       round_trip<__half>(rows, cols, density, spare);
                       round_trip<__nv_bfloat16>(rows, cols, density, spare);
                     }});
  };
  add(1, 1, 1, 0);
  add(37, 101, 0.3, 5);
  add(4, 9, 0, 600);
  add(0, 3, 0, 2);
  return cases;
}
