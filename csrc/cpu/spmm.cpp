#include "spfde/spmm.h"

#include "linear.h"

namespace spfde::SPFDE_ISA {

// A row's outputs stay in registers over its weights of a panel and are spilled once per panel.
void spmm(const SpmmArgs& a) {
  const LinearProblem problem = linear_problem(a, 1, 1, a.row_ptr, a.col);
  const float* values = permuted(a.values, a.perm, a.row_ptr[a.rows], problem.threads);
  linear_product(problem, problem.density() > kDense || problem.positions > 1 ? kStrip : kStrip / 2, a.x, a.y,
                 [&](int64_t vectors, int64_t rows, const Segments& weights, const float* source, int64_t pitch,
                     int64_t row, Sum sum) {
                   sum.bias = a.bias ? a.bias + row : nullptr;
                   axpy_panel(vectors, {rows, weights, values, a.col, pitch, source, sum});
                 });
}

}  // namespace spfde::SPFDE_ISA
