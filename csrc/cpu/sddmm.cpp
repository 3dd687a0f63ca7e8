#include "spfde/sddmm.h"

#include "linear.h"

namespace spfde::SPFDE_ISA {

// Eight weights of a row at a time share each load of dY.
void sddmm(const SddmmArgs& a) {
  linear_correlation(linear_problem(a, 1, 1, a.row_ptr, a.col), a.dy, a.x,
                     {a.row_ptr[a.rows], a.capacity, a.dvalues, a.dbias},
                     [&](int64_t rows, const Segments& weights, const float* source, int64_t pitch, const float* target,
                         float* dvalues) {
                       dot_panel({rows, weights, a.col, pitch, source, target, pitch, pitch, 1, 0, 0, dvalues});
                     });
}

}  // namespace spfde::SPFDE_ISA
