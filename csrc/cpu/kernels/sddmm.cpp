#include "cpu/float32.h"
#include "few_lanes.h"
#include "linear_correlation.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {

// A row of dY stays in registers over its weights of a panel.
void sddmm(const SddmmArgs& a, const Exec& exec) {
  if (0 < a.batch && a.batch <= kFewLanes) {
    clear(floats(a.dvalues), a.capacity);
    return few_correlation(a, floats(a.dy), floats(a.x), floats(a.dvalues), floats(a.dbias), exec);
  }
  Scratch scratch;
  const LinearProblem problem = linear_problem(a, {1, 1, a.row_ptr, a.col}, nullptr, a.order, exec, scratch);
  float* out = floats(a.dvalues);
  clear(out + problem.stored, a.capacity - problem.stored);
  linear_correlation(
      problem, strip_of(problem), floats(a.dy), floats(a.x), {a.capacity, out, floats(a.dbias)},
      [](const Visits& visits, const float* source, int64_t pitch, const float* target, float* dvalues, bool fresh) {
        dot_visits(pitch / kWidth, {visits, source, pitch, target, pitch, dvalues + visits.first, fresh});
      },
      [](int64_t slot, int64_t) { return slot; });
}

}  // namespace spfde::cpu::SPFDE_ISA
