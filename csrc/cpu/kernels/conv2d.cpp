#include "conv2d_grouped.h"
#include "conv2d_products.h"
#include "moments.h"
#include "per_thread.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// unpack_target of rows that are channels, and their moments: a few channels at a time, which are then near for both.
void unpack_and_measure(const Conv2dGeometry& g, const Layout& l, const float* packed, int64_t begin, int64_t end,
                        bool channels_last, int64_t first, int64_t images, float* y, Moments* found) {
  const Planes& p = l.planes;
  const int64_t together = channels_last ? kLine : l.target.span;
  for (int64_t c = begin; c < end; c += together) {
    const int64_t stop = min(end, c + together);
    const float* rows = packed + (c - begin) * p.target_size;
    for (int64_t r = c; r < stop; ++r) found[r] = moments_of(p, rows + (r - c) * p.target_size, images);
    unpack_target(g, l, rows, c, stop, channels_last, first, images, y);
  }
}

}  // namespace

bool takes_moments(const ShiftedProductArgs& a) {
  const Conv2dGeometry& g = a.geometry;
  return g.batch > 0 && g.target_channels > 0 && g.h.target_length * g.w.target_length > 0 &&
         !takes_groups(g, a.source_channels_last, a.target_channels_last) && choose_lanes(g) > 1;
}

void shifted_product(const ShiftedProductArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  const int64_t phases = g.h.target_phases * g.w.target_phases, rows = g.target_channels * phases;
  if (g.batch == 0 || rows == 0 || g.h.target_length * g.w.target_length == 0) return;
  if (takes_groups(g, a.source_channels_last, a.target_channels_last)) return grouped_product(a, exec);
  Scratch scratch;
  const Layout l = lay_out(g, choose_lanes(g), rows, phases, exec.threads, scratch);
  const Planes& p = l.planes;
  const ChunkProduct product(a, p, rows, exec.threads, scratch);
  const PerThread<float> sources(scratch, exec.threads, p.source_size);
  const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);
  Moments* found = a.moments ? take<Moments>(scratch, p.chunks * rows) : nullptr;

#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t share = 0; share < l.shares; ++share) {
      const int64_t begin = share * l.share, end = min(rows, begin + l.share);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      pack_source(g, l, a.source, a.source_channels_last, first, images, 0, g.source_channels, source);
      product.run(begin, end, source, target);
      if (found)
        unpack_and_measure(g, l, target, begin, end, a.target_channels_last, first, images, a.target,
                           found + chunk * rows);
      else
        unpack_target(g, l, target, begin, end, a.target_channels_last, first, images, a.target);
    }
  if (found) combine(g, p, found, a.moments);
}

// Per chunk of images, strip and panel: every row keeps its dY in registers.
void shifted_correlation(const ShiftedCorrelationArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  if (takes_groups(g, a.source_channels_last, a.target_channels_last)) return grouped_correlation(a, exec);
  const int64_t rows = g.target_channels;
  if (g.batch == 0 || g.h.grid * g.w.grid == 0) {
    clear(a.dvalues, a.capacity);
    if (a.dbias) clear(a.dbias, rows);
    return;
  }
  Scratch scratch;
  const PrivateSums sums(a, exec.threads, scratch);
  const Layout l = lay_out(g, choose_lanes(g), rows, 1, exec.threads, scratch);
  const Planes& p = l.planes;
  const ChunkCorrelation correlation(a, p, exec.threads, scratch);
  const PerThread<float> sources(scratch, exec.threads, p.source_size);
  const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);
  const int64_t tasks = p.chunks * l.shares;
#pragma omp parallel for schedule(static, 1) num_threads(exec.threads)
  for (int64_t worker = 0; worker < exec.threads; ++worker) {
    double* dbias = sums.dbias + worker * rows;
    for (int64_t task = tasks * worker / exec.threads; task < tasks * (worker + 1) / exec.threads; ++task) {
      const int64_t begin = task % l.shares * l.share, end = min(rows, begin + l.share);
      const int64_t first = task / l.shares * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      pack_source(g, l, a.source, a.source_channels_last, first, images, 0, g.source_channels, source);
      pack_target(g, l, a.target, a.target_channels_last, first, images, begin, end, target);
      if (a.dbias)
        for (int64_t r = begin; r < end; ++r)
          dbias[r] += sum_in_double(target + (r - begin) * p.target_size, p.target_size);
      correlation.run(begin, end, source, target, p.target_run, p.target_size, sums.dvalues + worker * sums.weights);
    }
  }
  sums.add(a, correlation.streams);
}

}  // namespace spfde::cpu::SPFDE_ISA
