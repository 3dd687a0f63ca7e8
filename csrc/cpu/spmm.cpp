#include "spfde/spmm.h"

#include "lanes.h"
#include "spfde/workspace.h"
#include "stream.h"

namespace spfde::SPFDE_ISA {

// Per batch tile, a panel of input features x lanes stays in L1 while every row uses it; a row's outputs stay in
// registers over its weights of the panel and are spilled once per panel.
void spmm(const SpmmArgs& a) {
  if (a.batch == 0 || a.rows == 0) return;
  const Lanes l = split_batch(a.batch, kStrip);
  const int64_t panel = max(1, kPanelBytes / (l.lanes * int64_t{sizeof(float)}));
  const int64_t panels = max(1, ceil_div(a.cols, panel));
  const int64_t block = min(256, ceil_div(a.rows, max(1, ceil_div(a.threads, l.tiles))));
  const int64_t blocks = ceil_div(a.rows, block);
  const int64_t pack_step = round_up(panel, kWidth);
  const int64_t pack_steps = ceil_div(a.cols, pack_step);
  const AxpyStreams axpy = axpy_streams_for(l.lanes / kWidth);

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
        const float* source = packed + tile * a.cols * l.lanes;
        float* target = scratch<float>(Scratch::target, block * l.lanes);
        for (int64_t p = 0; p < panels; ++p)
          for (int64_t r = begin; r < end; ++r) {
            const int32_t k = segment[p * a.rows + r], n = segment[(p + 1) * a.rows + r] - k;
            axpy(a.values + k, a.col + k, n, l.lanes, source, p == 0, a.bias ? a.bias[r] : 0.f,
                 target + (r - begin) * l.lanes);
          }
        unpack_lanes(l, tile, begin, end, target, a.y, a.rows);
      }
  }
}

}  // namespace spfde::SPFDE_ISA
