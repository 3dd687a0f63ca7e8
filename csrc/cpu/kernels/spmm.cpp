#include "cpu/float32.h"
#include "few_lanes.h"
#include "linear.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {

// A row's outputs stay in registers over its weights of a panel and are spilled once per panel.
void spmm(const SpmmArgs& a, const Exec& exec) {
  if (0 < a.batch && a.batch <= kFewLanes)
    return few_product(a, floats(a.values), floats(a.bias), floats(a.x), floats(a.y), exec);
  Scratch scratch;
  const LinearProblem problem = linear_problem(a, {1, 1, a.row_ptr, a.col}, a.perm, a.order, exec, scratch);
  const float* values = permuted(floats(a.values), problem.order.slot, problem.stored, problem.threads, scratch);
  const float* bias = floats(a.bias);
  linear_product(problem, strip_of(problem), floats(a.x), floats(a.y),
                 [&](int64_t vectors, const Visits& visits, const float* source, int64_t pitch, int64_t row, Sum sum) {
                   sum.bias = bias ? bias + row : nullptr;
                   axpy_visits(vectors, {visits, values + visits.first, source, pitch, sum});
                 });
}

}  // namespace spfde::cpu::SPFDE_ISA
