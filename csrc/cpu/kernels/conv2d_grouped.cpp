#include "conv2d_grouped.h"

#include "conv2d_chunk.h"
#include "per_thread.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// Source channels and rows of one group, and weights if it were dense.
struct Group {
  int64_t sources, rows, weights;
};
Group group_of(const Conv2dGeometry& g) {
  const int64_t sources = g.source_channels / g.groups, targets = g.target_channels / g.groups;
  return {sources, targets * g.h.target_phases * g.w.target_phases, sources * targets * g.h.taps * g.w.taps};
}

// Rows of large images are copied faster than they are turned into lanes.
int64_t grouped_lanes(const Conv2dGeometry& g) {
  constexpr int64_t kLong = 16;
  return g.w.grid > kLong ? 1 : choose_lanes(g);
}

// What every thread needs to hold of the group it works on.
struct GroupMemory {
  const int32_t* position;  // see column_positions
  PerThread<int32_t> offsets;
  PerThread<float> sources, targets;

  GroupMemory(const Conv2dGeometry& g, const Group& group, const Planes& p, int threads, Scratch& scratch)
      : position(column_positions(g, p, scratch)),
        offsets(scratch, threads, group.weights),
        sources(scratch, threads, group.sources * p.channel_stride * p.lanes),
        targets(scratch, threads, group.rows * p.target_size) {}

  // Where the streams of weights [begin, end) lie in the group's planes, the first at index `begin`.
  const int32_t* index(const int32_t* col, int64_t begin, int64_t end) const {
    int32_t* offset = offsets.mine();
    for (int64_t k = begin; k < end; ++k) offset[k - begin] = position[col[k]];
    return offset - begin;
  }
};

}  // namespace

bool takes_groups(const Conv2dGeometry& g, bool source_channels_last, bool target_channels_last) {
  constexpr int64_t kNarrow = 4;
  return g.groups > 1 && g.source_channels <= kNarrow * g.groups && g.target_channels <= kNarrow * g.groups &&
         !source_channels_last && !target_channels_last;
}

void grouped_product(const ShiftedProductArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  const Group group = group_of(g);
  Scratch scratch;
  const Layout l = lay_out(g, grouped_lanes(g), group.rows, group.rows, 1, scratch);
  const Planes& p = l.planes;
  const GroupMemory memory(g, group, p, exec.threads, scratch);
  const int64_t vectors = p.run / kWidth, strips = ceil_div(p.run, kStrip);
#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t c = 0; c < g.groups; ++c) {
      const int64_t begin = c * group.rows, first = chunk * p.images, images = min(p.images, g.batch - first);
      const int32_t* segment = a.row_ptr + begin;
      const int32_t* offset = memory.index(a.col, segment[0], segment[group.rows]);
      float *source = memory.sources.mine(), *target = memory.targets.mine();
      pack_source(g, l, a.source, false, first, images, c * group.sources, (c + 1) * group.sources, source);
      for (int64_t run = 0; run < p.runs; ++run)
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
          float* sums = target + run * p.target_run + v * kWidth;
          axpy_panel(1, v_end - v,
                     {group.rows,
                      {segment, segment + 1},
                      a.values,
                      offset,
                      p.lanes,
                      source + run * p.source_run + v * kWidth,
                      {nullptr, 0, sums, p.target_size, a.bias ? a.bias + begin : nullptr, group.rows}});
        }
      unpack_target(g, l, target, begin, begin + group.rows, false, first, images, a.target);
    }
}

// A thread takes whole groups, so that sums need no second pass and do not depend on the number of threads.
void grouped_correlation(const ShiftedCorrelationArgs& a, const Exec& exec) {
  const Conv2dGeometry& g = a.geometry;
  const Group group = group_of(g);
  const bool empty = g.batch == 0 || g.h.grid * g.w.grid == 0;
  Scratch scratch;
  const Layout l = empty ? Layout{} : lay_out(g, grouped_lanes(g), group.rows, group.rows, 1, scratch);
  const Planes& p = l.planes;
  const GroupMemory memory(g, group, p, exec.threads, scratch);
  const PerThread<double> sums(scratch, exec.threads, group.rows);
  const int64_t nnz = a.row_ptr[g.target_channels];
#pragma omp parallel for schedule(static) num_threads(exec.threads)
  for (int64_t c = 0; c < g.groups; ++c) {
    const int64_t begin = c * group.rows;
    const int32_t* segment = a.row_ptr + begin;
    const int32_t* offset = memory.index(a.col, segment[0], segment[group.rows]);
    float *source = memory.sources.mine(), *target = memory.targets.mine();
    double* dbias = sums.mine();
    for (int64_t k = segment[0]; k < segment[group.rows]; ++k) a.dvalues[k] = 0.f;
    for (int64_t r = 0; r < group.rows; ++r) dbias[r] = 0.;
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      pack_source(g, l, a.source, false, first, images, c * group.sources, (c + 1) * group.sources, source);
      pack_target(g, l, a.target, false, first, images, begin, begin + group.rows, target);
      for (int64_t r = 0; a.dbias && r < group.rows; ++r)
        dbias[r] += sum_in_double(target + r * p.target_size, p.target_size);
      dot_panel({group.rows,
                 {segment, segment + 1},
                 offset,
                 p.lanes,
                 source,
                 target,
                 p.target_size,
                 p.run,
                 p.runs,
                 p.source_run,
                 p.target_run,
                 a.dvalues});
    }
    for (int64_t r = 0; a.dbias && r < group.rows; ++r) a.dbias[begin + r] = static_cast<float>(dbias[r]);
  }
  for (int64_t k = nnz; k < a.capacity; ++k) a.dvalues[k] = 0.f;
}

}  // namespace spfde::cpu::SPFDE_ISA
