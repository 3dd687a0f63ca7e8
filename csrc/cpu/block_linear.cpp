#include "block_stream.h"
#include "linear.h"
#include "spfde/blocks.h"

namespace spfde::SPFDE_ISA {
namespace {

template <typename Args>
LinearProblem problem(const Args& a) {
  return linear_problem(a, a.index.height, a.index.width, a.index.unit_ptr, a.index.unit_col);
}

BlockPanel panel(const BlockIndex& index, int64_t block_rows, const Segments& units, const float* values,
                 int64_t pitch) {
  return {block_rows, units, index.height, index.width, values, index.unit_col, pitch};
}

}  // namespace

void spmm_blocks(const SpmmBlocksArgs& a) {
  linear_product(problem(a), kBlockStrip, a.x, a.y,
                 [&](int64_t vectors, int64_t block_rows, const Segments& units, const float* source, int64_t pitch,
                     int64_t row, Sum sum) {
                   sum.bias = a.bias ? a.bias + row : nullptr;
                   block_axpy_panel(vectors, panel(a.index, block_rows, units, a.values, pitch), source, sum);
                 });
}

void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& a) {
  const int64_t block_rows = ceil_div(a.rows, a.index.height);
  linear_transposed_product(problem(a), kBlockStrip, a.dy, a.dx,
                            [&](int64_t vectors, const Segments& units, int64_t pitch, float* dx, const float* dy) {
                              block_scatter_panel(vectors, panel(a.index, block_rows, units, a.values, pitch), dx, dy,
                                                  pitch);
                            });
}

void sddmm_blocks(const SddmmBlocksArgs& a) {
  const int64_t height = a.index.height, block_rows = ceil_div(a.rows, height);
  linear_correlation(problem(a), a.dy, a.x,
                     {a.index.unit_ptr[block_rows] * height, a.capacity * height * a.index.width, a.dvalues, a.dbias},
                     [&](int64_t rows, const Segments& units, const float* source, int64_t pitch, const float* target,
                         float* dvalues) {
                       block_dot_panel(panel(a.index, rows, units, nullptr, pitch),
                                       {source, target, pitch, pitch, 1, 0, 0, dvalues});
                     });
}

}  // namespace spfde::SPFDE_ISA
