#include "cpu/float32.h"
#include "linear_correlation.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {

// Eight weights of a row at a time share each load of dY.
void sddmm(const SddmmArgs& a, const Exec& exec) {
  linear_correlation(linear_problem(a, {1, 1, a.row_ptr, a.col}, exec), floats(a.dy), floats(a.x),
                     {a.row_ptr[a.rows], a.capacity, floats(a.dvalues), floats(a.dbias)},
                     [&](int64_t rows, const Segments& weights, const float* source, int64_t pitch, const float* target,
                         float* dvalues) {
                       dot_panel({rows, weights, a.col, pitch, source, target, pitch, pitch, 1, 0, 0, dvalues});
                     });
}

}  // namespace spfde::cpu::SPFDE_ISA
