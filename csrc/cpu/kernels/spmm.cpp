#include "cpu/float32.h"
#include "linear.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {

// A row's outputs stay in registers over its weights of a panel and are spilled once per panel.
void spmm(const SpmmArgs& a, const Exec& exec) {
  const LinearProblem problem = linear_problem(a, {1, 1, a.row_ptr, a.col}, exec);
  Scratch scratch;
  const float* values = permuted(floats(a.values), a.perm, a.row_ptr[a.rows], problem.threads, scratch);
  const float* bias = floats(a.bias);
  linear_product(problem, problem.density() > kDense || problem.positions > 1 ? kStrip : kStrip / 2, floats(a.x),
                 floats(a.y),
                 [&](int64_t vectors, int64_t rows, const Segments& weights, const float* source, int64_t pitch,
                     int64_t row, Sum sum) {
                   sum.bias = bias ? bias + row : nullptr;
                   axpy_panel(vectors, {rows, weights, values, a.col, pitch, source, sum});
                 });
}

}  // namespace spfde::cpu::SPFDE_ISA
