#include "spfde/sddmm.h"

#include "lanes.h"
#include "spfde/workspace.h"
#include "stream.h"

namespace spfde::SPFDE_ISA {

// Rows are split over threads, so every gradient has one owner and one order of summation.
void sddmm(const SddmmArgs& a) {
  for (int64_t k = 0; k < a.capacity; ++k) a.dvalues[k] = 0.f;
  double* dbias = scratch<double>(Scratch::bias, a.dbias ? a.rows : 0);
  if (a.dbias)
    for (int64_t r = 0; r < a.rows; ++r) {
      a.dbias[r] = 0.f;
      dbias[r] = 0.;
    }
  if (a.batch == 0 || a.rows == 0) return;

  const Lanes l = split_batch(a.batch, kStrip);
  const double density = a.row_ptr[a.rows] / (static_cast<double>(a.rows) * max(1, a.cols));
  const int64_t panel = panel_streams(l.lanes * int64_t{sizeof(float)}, density);
  const int64_t panels = max(1, ceil_div(a.cols, panel));
  const int64_t step = round_up(min(panel, 128), kWidth);
  const int64_t x_steps = ceil_div(a.cols, step), dy_steps = ceil_div(a.rows, step);
  const int64_t block = max(1, min(256, ceil_div(a.rows, 4 * a.threads)));
  const int64_t blocks = ceil_div(a.rows, block);

  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * a.rows);
  float* x = scratch<float>(Scratch::source, l.tiles * a.cols * l.lanes);
  float* dy = scratch<float>(Scratch::partial, l.tiles * a.rows * l.lanes);

#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < a.rows; ++r) split_row(a.row_ptr, a.col, a.rows, r, panels, panel, 0, segment);
#pragma omp for schedule(static) collapse(2) nowait
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t s = 0; s < x_steps; ++s)
        pack_lanes(l, tile, s * step, min(a.cols, (s + 1) * step), a.x, a.cols, x + tile * a.cols * l.lanes);
#pragma omp for schedule(static) collapse(2)
    for (int64_t tile = 0; tile < l.tiles; ++tile)
      for (int64_t s = 0; s < dy_steps; ++s)
        pack_lanes(l, tile, s * step, min(a.rows, (s + 1) * step), a.dy, a.rows, dy + tile * a.rows * l.lanes);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * block, end = min(a.rows, begin + block);
      for (int64_t tile = 0; tile < l.tiles; ++tile) {
        const float* target = dy + (tile * a.rows + begin) * l.lanes;
        for (int64_t p = 0; p < panels; ++p) {
          const int32_t* segments = segment + p * a.rows + begin;
          dot_panel({end - begin, {segments, segments + a.rows}, a.col, l.lanes, x + tile * a.cols * l.lanes, target,
                     l.lanes, l.lanes, 1, 0, 0, a.dvalues});
        }
        if (a.dbias)
          for (int64_t r = begin; r < end; ++r) dbias[r] += sum_in_double(target + (r - begin) * l.lanes, l.lanes);
      }
      if (a.dbias)
        for (int64_t r = begin; r < end; ++r) a.dbias[r] = static_cast<float>(dbias[r]);
    }
  }
}

}  // namespace spfde::SPFDE_ISA
