#include "spfde/spmm.h"

#include "lanes.h"
#include "spfde/workspace.h"
#include "stream.h"

namespace spfde::SPFDE_ISA {

// Per batch tile, a panel of input features x lanes stays close while every row uses it; a row's outputs stay in
// registers over its weights of the panel and are spilled once per panel.
void spmm(const SpmmArgs& a) {
  if (a.batch == 0 || a.rows == 0) return;
  const Lanes l = split_batch(a.batch, kStrip);
  const double density = a.row_ptr[a.rows] / (static_cast<double>(a.rows) * max(1, a.cols));
  const int64_t panel = panel_streams(l.lanes * int64_t{sizeof(float)}, density);
  const int64_t panels = max(1, ceil_div(a.cols, panel));
  const int64_t block = min(256, ceil_div(a.rows, max(1, ceil_div(a.threads, l.tiles))));
  const int64_t blocks = ceil_div(a.rows, block);
  const int64_t pack_step = round_up(min(panel, 128), kWidth);
  const int64_t pack_steps = ceil_div(a.cols, pack_step);

  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * a.rows);
  float* packed = scratch<float>(Scratch::source, l.tiles * a.cols * l.lanes);

#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < a.rows; ++r) split_row(a.row_ptr, a.col, a.rows, r, panels, panel, 0, segment);
#pragma omp for schedule(static) collapse(2)
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t s = 0; s < pack_steps; ++s)
        pack_lanes(l, tile, s * pack_step, min(a.cols, (s + 1) * pack_step), a.x, a.cols,
                   packed + tile * a.cols * l.lanes);
#pragma omp for schedule(static) collapse(2)
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = b * block, end = min(a.rows, begin + block);
        float* target = scratch<float>(Scratch::target, block * l.lanes);
        for (int64_t p = 0; p < panels; ++p) {
          const int32_t* segments = segment + p * a.rows + begin;
          axpy_panel(l.lanes / kWidth,
                     {end - begin, {segments, segments + a.rows}, a.values, a.col, l.lanes,
                      packed + tile * a.cols * l.lanes, p == 0, a.bias ? a.bias + begin : nullptr, target, l.lanes});
        }
        unpack_lanes(l, tile, begin, end, target, a.y, a.rows);
      }
  }
}

}  // namespace spfde::SPFDE_ISA
