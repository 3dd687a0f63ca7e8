#include "spfde/spmm.h"

#include "linear.h"

namespace spfde::SPFDE_ISA {

// A row's outputs stay in registers over its weights of a panel and are spilled once per panel.
void spmm(const SpmmArgs& a) {
  linear_product({a.rows, a.cols, a.batch, a.positions, 1, 1, a.row_ptr, a.col, a.threads}, kStrip, a.x, a.y,
                 [&](int64_t vectors, int64_t rows, const Segments& weights, const float* source, int64_t pitch,
                     int64_t row, Sum sum) {
                   sum.bias = a.bias ? a.bias + row : nullptr;
                   axpy_panel(vectors, {rows, weights, a.values, a.col, pitch, source, sum});
                 });
}

}  // namespace spfde::SPFDE_ISA
