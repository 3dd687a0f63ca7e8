#include "conv2d_grouped.h"
#include "conv2d_products.h"
#include "per_thread.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {

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

#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t share = 0; share < l.shares; ++share) {
      const int64_t begin = share * l.share, end = min(rows, begin + l.share);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      pack_source(g, l, a.source, a.source_channels_last, first, images, 0, g.source_channels, source);
      product.run(begin, end, source, target);
      unpack_target(g, l, target, begin, end, a.target_channels_last, first, images, a.target);
    }
}

// Per chunk of images: eight weights of a row at a time share each load of dY.
void shifted_correlation(const ShiftedCorrelationArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  if (takes_groups(g, a.source_channels_last, a.target_channels_last)) return grouped_correlation(a, exec);
  const int64_t rows = g.target_channels;
  Scratch scratch;
  const PrivateSums sums(a, exec.threads, scratch);
  if (g.batch > 0 && g.h.grid * g.w.grid > 0) {
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
  }
  sums.add(a);
}

}  // namespace spfde::cpu::SPFDE_ISA
