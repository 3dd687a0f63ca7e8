#include "cpu/float32.h"
#include "linear_correlation.h"
#include "stream_blocks.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

BlockPanel panel(const BlockIndex& index, int64_t block_rows, const Segments& units, const float* values,
                 int64_t pitch) {
  return {block_rows, units, index.height, index.width, values, index.unit_col, pitch};
}

}  // namespace

void spmm_blocks(const SpmmBlocksArgs& a, const Exec& exec) {
  const float *values = floats(a.values), *bias = floats(a.bias);
  linear_product(linear_problem(a, a.index, exec), kBlockStrip, floats(a.x), floats(a.y),
                 [&](int64_t vectors, int64_t block_rows, const Segments& units, const float* source, int64_t pitch,
                     int64_t row, Sum sum) {
                   sum.bias = bias ? bias + row : nullptr;
                   block_axpy_panel(vectors, panel(a.index, block_rows, units, values, pitch), source, sum);
                 });
}

void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& a, const Exec& exec) {
  const int64_t block_rows = ceil_div(a.rows, a.index.height);
  const float* values = floats(a.values);
  linear_transposed_product(linear_problem(a, a.index, exec), kBlockStrip, floats(a.dy), floats(a.dx),
                            [&](int64_t vectors, const Segments& units, int64_t pitch, float* dx, const float* dy) {
                              block_scatter_panel(vectors, panel(a.index, block_rows, units, values, pitch), dx, dy,
                                                  pitch);
                            });
}

void sddmm_blocks(const SddmmBlocksArgs& a, const Exec& exec) {
  const int64_t height = a.index.height, block_rows = ceil_div(a.rows, height);
  linear_correlation(
      linear_problem(a, a.index, exec), floats(a.dy), floats(a.x),
      {a.index.unit_ptr[block_rows] * height, a.capacity * height * a.index.width, floats(a.dvalues), floats(a.dbias)},
      [&](int64_t rows, const Segments& units, const float* source, int64_t pitch, const float* target,
          float* dvalues) {
        block_dot_panel(panel(a.index, rows, units, nullptr, pitch), {source, target, pitch, pitch, 1, 0, 0, dvalues});
      });
}

}  // namespace spfde::cpu::SPFDE_ISA
