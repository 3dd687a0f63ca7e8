#include "block_stream.h"
#include "lanes.h"
#include "spfde/blocks.h"
#include "spfde/workspace.h"

namespace spfde::SPFDE_ISA {
namespace {

// Columns per panel, a multiple of the block width.
int64_t panel_columns(const BlockIndex& index, int64_t block_rows, int64_t cols, int64_t lanes) {
  const double density = index.unit_ptr[block_rows] / (static_cast<double>(block_rows) * max(1, cols));
  return round_up(panel_streams(lanes * int64_t{sizeof(float)}, density), index.width);
}

// The work-sharing loops below split over the threads of the enclosing parallel region.

void split_block_rows(const BlockIndex& index, int64_t block_rows, int64_t panels, int64_t panel, int32_t* segment) {
#pragma omp for schedule(static) nowait
  for (int64_t b = 0; b < block_rows; ++b)
    split_row(index.unit_ptr, index.unit_col, block_rows, b, panels, panel, 0, segment);
}

// packed[tile][feature][lane] of x [batch, features]; features in [features, padded) are zero.
void pack_all(const Lanes& l, const float* x, int64_t features, int64_t padded, float* packed) {
  constexpr int64_t kStep = 128;
  const int64_t steps = ceil_div(padded, kStep);
#pragma omp for schedule(static) collapse(2)
  for (int64_t tile = 0; tile < l.tiles; ++tile)
    for (int64_t s = 0; s < steps; ++s) {
      float* at = packed + tile * padded * l.lanes;
      const int64_t begin = s * kStep, end = min(padded, begin + kStep), real = min(end, features);
      if (begin < real) pack_lanes(l, tile, begin, real, x, features, at);
      for (int64_t q = max(begin, real) * l.lanes; q < end * l.lanes; ++q) at[q] = 0.f;
    }
}

}  // namespace

void spmm_blocks(const SpmmBlocksArgs& a) {
  if (a.batch == 0 || a.rows == 0) return;
  const int64_t height = a.index.height, block_rows = ceil_div(a.rows, height);
  const Lanes l = split_batch(a.batch, kBlockStrip);
  const int64_t panel = panel_columns(a.index, block_rows, a.cols, l.lanes);
  const int64_t panels = max(1, ceil_div(a.cols, panel));
  const int64_t share = min(ceil_div(256, height), ceil_div(block_rows, max(1, ceil_div(a.threads, l.tiles))));
  const int64_t shares = ceil_div(block_rows, share);
  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * block_rows);
  float* packed = scratch<float>(Scratch::source, l.tiles * a.cols * l.lanes);

#pragma omp parallel num_threads(a.threads)
  {
    split_block_rows(a.index, block_rows, panels, panel, segment);
    pack_all(l, a.x, a.cols, a.cols, packed);
#pragma omp for schedule(static) collapse(2)
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t s = 0; s < shares; ++s) {
        const int64_t begin = s * share, end = min(block_rows, begin + share);
        const int64_t row = begin * height, rows = min(a.rows, end * height) - row;
        float* target = scratch<float>(Scratch::target, share * height * l.lanes);
        for (int64_t p = 0; p < panels; ++p) {
          const int32_t* segments = segment + p * block_rows + begin;
          block_axpy_panel(l.lanes / kWidth,
                           {end - begin, {segments, segments + block_rows}, height, a.index.width, a.values,
                            a.index.unit_col, l.lanes},
                           packed + tile * a.cols * l.lanes,
                           {target, l.lanes, p == 0, a.bias ? a.bias + row : nullptr, rows});
        }
        unpack_lanes(l, tile, row, row + rows, target, a.y, a.rows);
      }
  }
}

// A task owns a panel of dX, which stays close while every row of dY adds to it.
void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& a) {
  if (a.batch == 0 || a.cols == 0) return;
  const int64_t height = a.index.height, block_rows = ceil_div(a.rows, height), padded = block_rows * height;
  const Lanes l = split_batch(a.batch, kBlockStrip);
  const int64_t balanced = round_up(ceil_div(a.cols, max(1, ceil_div(a.threads, l.tiles))), a.index.width);
  const int64_t panel = min(panel_columns(a.index, block_rows, a.cols, l.lanes), balanced);
  const int64_t panels = ceil_div(a.cols, panel);
  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * block_rows);
  float* packed = scratch<float>(Scratch::source, l.tiles * padded * l.lanes);

#pragma omp parallel num_threads(a.threads)
  {
    split_block_rows(a.index, block_rows, panels, panel, segment);
    pack_all(l, a.dy, a.rows, padded, packed);
#pragma omp for schedule(static) collapse(2)
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t begin = p * panel, end = min(a.cols, begin + panel);
        float* target = scratch<float>(Scratch::target, (end - begin) * l.lanes);
        for (int64_t q = 0; q < (end - begin) * l.lanes; ++q) target[q] = 0.f;
        const int32_t* segments = segment + p * block_rows;
        block_scatter_panel(l.lanes / kWidth,
                            {block_rows, {segments, segments + block_rows}, height, a.index.width, a.values,
                             a.index.unit_col, l.lanes},
                            target - begin * l.lanes, packed + tile * padded * l.lanes, l.lanes);
        unpack_lanes(l, tile, begin, end, target, a.dx, a.cols);
      }
  }
}

// Block rows are split over threads, so every gradient has one owner and one order of summation.
void sddmm_blocks(const SddmmBlocksArgs& a) {
  const int64_t height = a.index.height, size = height * a.index.width;
  for (int64_t k = 0; k < a.capacity * size; ++k) a.dvalues[k] = 0.f;
  if (a.dbias)
    for (int64_t r = 0; r < a.rows; ++r) a.dbias[r] = 0.f;
  if (a.batch == 0 || a.rows == 0) return;

  const int64_t block_rows = ceil_div(a.rows, height), padded = block_rows * height;
  const Lanes l = split_batch(a.batch, kStrip);
  const int64_t panel = panel_columns(a.index, block_rows, a.cols, l.lanes);
  const int64_t panels = max(1, ceil_div(a.cols, panel));
  const int64_t share = max(1, min(ceil_div(256, height), ceil_div(block_rows, 4 * a.threads)));
  const int64_t shares = ceil_div(block_rows, share);
  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * block_rows);
  float* x = scratch<float>(Scratch::source, l.tiles * a.cols * l.lanes);
  float* dy = scratch<float>(Scratch::partial, l.tiles * padded * l.lanes);

#pragma omp parallel num_threads(a.threads)
  {
    split_block_rows(a.index, block_rows, panels, panel, segment);
    pack_all(l, a.x, a.cols, a.cols, x);
    pack_all(l, a.dy, a.rows, padded, dy);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < shares; ++s) {
      const int64_t begin = s * share, end = min(block_rows, begin + share);
      for (int64_t tile = 0; tile < l.tiles; ++tile)
        for (int64_t p = 0; p < panels; ++p) {
          const int32_t* segments = segment + p * block_rows + begin;
          block_dot_panel({end - begin, {segments, segments + block_rows}, height, a.index.width, nullptr,
                           a.index.unit_col, l.lanes},
                          {x + tile * a.cols * l.lanes, dy + (tile * padded + begin * height) * l.lanes, l.lanes,
                           l.lanes, 1, 0, 0, a.dvalues});
        }
      if (a.dbias)
        for (int64_t r = begin * height; r < min(a.rows, end * height); ++r) {
          double sum = 0.;
          for (int64_t tile = 0; tile < l.tiles; ++tile) sum += sum_in_double(dy + (tile * padded + r) * l.lanes, l.lanes);
          a.dbias[r] = static_cast<float>(sum);
        }
    }
  }
}

}  // namespace spfde::SPFDE_ISA
