// The products of a linear layer for so few samples that a visit in panel order would cost more than what it finds:
// rows one after another, in the order of the index, over all columns at once.
#pragma once

#include "linear.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace spfde::cpu::SPFDE_ISA {

constexpr int64_t kFewLanes = 2 * kWidth;
constexpr int64_t kFewRows = 64;  // that a thread takes at a time

inline Lanes few_lanes(int64_t batch, int64_t positions) { return split_batch(batch, positions, kFewLanes); }

template <typename Args>
inline int few_threads(const Args& a, const Exec& exec) {
  return worth_threads(exec.threads, static_cast<double>(a.batch) * (a.row_ptr[a.rows] + a.rows + a.cols));
}

inline void few_product(const SpmmArgs& a, const float* all_values, const float* bias, const float* x, float* y,
                        const Exec& exec) {
  const int threads = few_threads(a, exec);
  const Lanes l = few_lanes(a.batch, a.positions);
  Scratch scratch;
  const float* values = permuted(all_values, a.perm, a.row_ptr[a.rows], threads, scratch);
  float* source = take<float>(scratch, a.cols * l.lanes);
  float* target = take<float>(scratch, a.rows * l.lanes);
#pragma omp parallel num_threads(threads)
  {
    pack_all(l, x, a.cols, a.cols, source);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.rows; begin += kFewRows) {
      const int64_t end = min(a.rows, begin + kFewRows);
      float* sums = target + begin * l.lanes;
      axpy_panel(1, l.lanes / kWidth,
                 {end - begin,
                  {a.row_ptr + begin, a.row_ptr + begin + 1},
                  values,
                  a.col,
                  l.lanes,
                  source,
                  {nullptr, l.lanes, sums, l.lanes, bias ? bias + begin : nullptr, end - begin}});
      unpack_lanes(l, 0, 1, begin, end, sums, 0, y, a.rows);
    }
  }
}

// dvalues: zero.
inline void few_correlation(const SddmmArgs& a, const float* dy, const float* x, float* dvalues, float* dbias,
                            const Exec& exec) {
  const Lanes l = few_lanes(a.batch, a.positions);
  Scratch scratch;
  float* source = take<float>(scratch, a.cols * l.lanes);
  float* target = take<float>(scratch, a.rows * l.lanes);
#pragma omp parallel num_threads(few_threads(a, exec))
  {
    pack_all(l, x, a.cols, a.cols, source);
    pack_all(l, dy, a.rows, a.rows, target);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < a.rows; begin += kFewRows) {
      const int64_t end = min(a.rows, begin + kFewRows);
      const float* rows = target + begin * l.lanes;
      dot_panel({end - begin,
                 {a.row_ptr + begin, a.row_ptr + begin + 1},
                 a.col,
                 l.lanes,
                 source,
                 rows,
                 l.lanes,
                 l.lanes,
                 1,
                 0,
                 0,
                 dvalues});
      for (int64_t r = begin; dbias && r < end; ++r)
        dbias[r] = static_cast<float>(sum_in_double(target + r * l.lanes, l.lanes));
    }
  }
}

}  // namespace spfde::cpu::SPFDE_ISA
