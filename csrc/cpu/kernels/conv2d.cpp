#include "conv2d_chunk.h"
#include "conv2d_grouped.h"
#include "per_thread.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

constexpr int64_t kDotFloats = 2 * kStrip;  // positions x lanes that one visit to a row correlates

}  // namespace

// Per chunk of images: lay the source out once, then per strip of a run keep a panel of channels close while every row
// uses it; accumulators stay in registers over a row's weights of the panel.
void shifted_product(const ShiftedProductArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  const int64_t phases = g.h.target_phases * g.w.target_phases, rows = g.target_channels * phases;
  if (g.batch == 0 || rows == 0 || g.h.target_length * g.w.target_length == 0) return;
  if (takes_groups(g, a.source_channels_last, a.target_channels_last)) return grouped_product(a, exec);
  Scratch scratch;
  const Layout l = lay_out(g, choose_lanes(g), rows, phases, exec.threads, scratch);
  const Planes& p = l.planes;
  const int64_t vectors = p.run / kWidth, strips = ceil_div(vectors, kStreamVectors);
  const Streams streams = index_streams(g, p, a.row_ptr, a.col, rows, 1, 1, min(p.run, kStrip), exec.threads, scratch);
  const PerThread<float> sources(scratch, exec.threads, p.source_size);
  const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);

#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t share = 0; share < l.shares; ++share) {
      const int64_t begin = share * l.share, end = min(rows, begin + l.share);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      pack_source(g, l, a.source, a.source_channels_last, first, images, 0, g.source_channels, source);
      for (int64_t run = 0; run < p.runs; ++run)
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
          float* sums = target + run * p.target_run + v * kWidth;
          for (int64_t q = 0; q < streams.panels; ++q) {
            const int32_t* segments = streams.segment + q * rows + begin;
            axpy_panel(v_end - v, {end - begin,
                                   {segments, segments + rows},
                                   a.values,
                                   streams.offset,
                                   p.lanes,
                                   source + run * p.source_run + v * kWidth,
                                   {q == 0 ? nullptr : sums, p.target_size, sums, p.target_size,
                                    a.bias ? a.bias + begin : nullptr, end - begin}});
          }
        }
      unpack_target(g, l, target, begin, end, a.target_channels_last, first, images, a.target);
    }
}

// Per chunk of images: eight weights of a row at a time share each load of dY; threads own private sums, added in
// thread order.
void shifted_correlation(const ShiftedCorrelationArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  if (takes_groups(g, a.source_channels_last, a.target_channels_last)) return grouped_correlation(a, exec);
  const int64_t rows = g.target_channels, nnz = a.row_ptr[rows];
  const bool empty = g.batch == 0 || g.h.grid * g.w.grid == 0;
  Scratch scratch;
  float* partial = take<float>(scratch, nnz * exec.threads);
  double* partial_bias = take<double>(scratch, rows * exec.threads);
  for (int64_t k = 0; k < nnz * exec.threads; ++k) partial[k] = 0.f;
  for (int64_t r = 0; r < rows * exec.threads; ++r) partial_bias[r] = 0.;

  if (!empty) {
    const Layout l = lay_out(g, choose_lanes(g), rows, 1, exec.threads, scratch);
    const Planes& p = l.planes;
    const int64_t vectors = p.run / kWidth, strips = ceil_div(p.run, kDotFloats);
    const int64_t together = max(1, min(p.runs, kDotFloats / p.run));  // short runs are correlated several at a time
    const Streams streams =
        index_streams(g, p, a.row_ptr, a.col, rows, 1, together, min(p.run, kDotFloats), exec.threads, scratch);
    const PerThread<float> sources(scratch, exec.threads, p.source_size);
    const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);
    const int64_t tasks = p.chunks * l.shares;
#pragma omp parallel for schedule(static, 1) num_threads(exec.threads)
    for (int64_t worker = 0; worker < exec.threads; ++worker) {
      float* dvalues = partial + worker * nnz;
      double* dbias = partial_bias + worker * rows;
      for (int64_t task = tasks * worker / exec.threads; task < tasks * (worker + 1) / exec.threads; ++task) {
        const int64_t begin = task % l.shares * l.share, end = min(rows, begin + l.share);
        const int64_t first = task / l.shares * p.images, images = min(p.images, g.batch - first);
        float *source = sources.mine(), *target = targets.mine();
        pack_source(g, l, a.source, a.source_channels_last, first, images, 0, g.source_channels, source);
        pack_target(g, l, a.target, a.target_channels_last, first, images, begin, end, target);
        if (a.dbias)
          for (int64_t r = begin; r < end; ++r)
            dbias[r] += sum_in_double(target + (r - begin) * p.target_size, p.target_size);
        for (int64_t run = 0; run < p.runs; run += together)
          for (int64_t s = 0; s < strips; ++s) {
            const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
            for (int64_t q = 0; q < streams.panels; ++q) {
              const int32_t* segments = streams.segment + q * rows + begin;
              dot_panel({end - begin,
                         {segments, segments + rows},
                         streams.offset,
                         p.lanes,
                         source + run * p.source_run + v * kWidth,
                         target + run * p.target_run + v * kWidth,
                         p.target_size,
                         (v_end - v) * kWidth,
                         min(together, p.runs - run),
                         p.source_run,
                         p.target_run,
                         dvalues});
            }
          }
      }
    }
  }
  add_partials(partial, nnz, exec.threads, a.capacity, a.dvalues);
  if (a.dbias) add_partials(partial_bias, rows, exec.threads, rows, a.dbias);
}

}  // namespace spfde::cpu::SPFDE_ISA
