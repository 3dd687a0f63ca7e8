#include "joined.h"
#include "planes.h"
#include "spfde/conv2d_geometry.h"
#include "spfde/workspace.h"
#include "stream.h"

namespace spfde::SPFDE_ISA {
namespace {

constexpr int64_t kDotFloats = 2 * kStrip;  // positions x lanes that one visit to a row correlates

// One call's layout: planes, where pixels go, and the rows that a task computes.
struct Layout {
  Planes planes;
  Places source, target;
  Blanks blanks;
  int64_t row_block, row_blocks;
};

Layout lay_out(const Conv2dGeometry& g, int64_t rows, int threads) {
  Layout l{};
  l.planes = plan_planes(g, threads);
  if (l.planes.source_size > INT32_MAX) refuse_size("conv2d", l.planes.source_size);
  if (l.planes.lanes > 1) {
    l.source = source_places(g, l.planes);
    l.target = target_places(g, l.planes);
    l.blanks = source_blanks(l.planes, l.source);
  }
  const int64_t phases = g.h.target_phases * g.w.target_phases;  // rows of a channel stay together
  l.row_block = max(1, ceil_div(rows / phases, max(1, ceil_div(threads, l.planes.chunks)))) * phases;
  l.row_blocks = ceil_div(rows, l.row_block);
  return l;
}

void pack_source(const Conv2dGeometry& g, const Layout& l, const float* x, bool channels_last, int64_t first,
                 int64_t images, float* packed) {
  if (l.planes.lanes == 1) return join_source(g, l.planes, x, channels_last, first, images, packed);
  clear_blanks(g, l.planes, l.blanks, packed);
  move_lanes<true>(l.source, l.planes.lanes, l.planes.channel_stride, 0, g.source_channels, g.source_channels,
                   channels_last, x + first * g.source_channels * l.source.pixels, images, packed);
}

// Rows [begin, end) of dY; one row per channel.
void pack_target(const Conv2dGeometry& g, const Layout& l, const float* dy, bool channels_last, int64_t first,
                 int64_t images, int64_t begin, int64_t end, float* packed) {
  const Planes& p = l.planes;
  if (p.lanes == 1) {
    for (int64_t r = begin; r < end; ++r)
      join_target(g, p, r, dy, channels_last, first, images, packed + (r - begin) * p.target_size);
    return;
  }
  move_lanes<true>(l.target, p.lanes, p.target_size / p.lanes, begin, end, g.target_channels, channels_last,
                   dy + first * g.target_channels * l.target.pixels, images, packed);
}

void unpack_target(const Conv2dGeometry& g, const Layout& l, const float* packed, int64_t begin, int64_t end,
                   bool channels_last, int64_t first, int64_t images, float* y) {
  const Planes& p = l.planes;
  if (p.lanes == 1) {
    for (int64_t r = begin; r < end; ++r)
      part_target(g, r, packed + (r - begin) * p.target_size, channels_last, first, images, y);
    return;
  }
  const int64_t phases = g.h.target_phases * g.w.target_phases;
  move_lanes<false>(l.target, p.lanes, p.target_size / p.lanes * phases, begin / phases, end / phases,
                    g.target_channels, channels_last, y + first * g.target_channels * l.target.pixels, images, packed);
}

// Position of every stored weight in the source planes, and where each panel of source channels begins in each row.
struct Streams {
  int64_t panels;
  const int32_t* offset;   // [nnz]
  const int32_t* segment;  // [(panels + 1) * rows]
};

// One visit to a row covers `runs` runs of `floats` floats.
Streams index_streams(const Conv2dGeometry& g, const Planes& planes, const int32_t* row_ptr, const int32_t* col,
                      int64_t rows, int64_t runs, int64_t floats, int threads) {
  const int64_t taps = g.h.taps * g.w.taps;
  const int64_t source_group = g.source_channels / g.groups, row_group = rows / g.groups;
  const int64_t bytes = (runs + planes.shift_rows) * (floats + planes.shift_floats) * int64_t{sizeof(float)} * g.slots;
  const double per_channel = row_ptr[rows] / (static_cast<double>(rows) * max(1, source_group));
  const int64_t panel = panel_streams(bytes, per_channel);
  const int64_t panels = max(1, ceil_div(g.source_channels, panel));
  int32_t* offset = scratch<int32_t>(Scratch::offsets, row_ptr[rows] + taps);
  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * rows);
  int32_t* tap_position = offset + row_ptr[rows];
  for (int64_t i = 0; i < g.h.taps; ++i)
    for (int64_t j = 0; j < g.w.taps; ++j)
      tap_position[i * g.w.taps + j] = static_cast<int32_t>(planes.tap_position(g, i, j));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first_channel = r / row_group * source_group;
    int64_t base = first_channel * planes.channel_stride, column = 0;
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) {
      for (; col[k] >= column + taps; column += taps) base += planes.channel_stride;
      offset[k] = static_cast<int32_t>(base + tap_position[col[k] - column]);
    }
    split_row(row_ptr, col, rows, r, panels, panel * taps, first_channel * taps, segment);
  }
  return {panels, offset, segment};
}

}  // namespace

// Per chunk of images: lay the source out once, then per strip of a run keep a panel of channels close while every row
// uses it; accumulators stay in registers over a row's weights of the panel.
void shifted_product(const ShiftedProductArgs& a) {
  const Conv2dGeometry& g = *a.geometry;
  const int64_t rows = g.target_channels * g.h.target_phases * g.w.target_phases;
  if (g.batch == 0 || rows == 0 || g.h.target_length * g.w.target_length == 0) return;
  const Layout l = lay_out(g, rows, a.threads);
  const Planes& p = l.planes;
  const int64_t vectors = p.run / kWidth, strips = ceil_div(vectors, kStreamVectors);
  const Streams streams = index_streams(g, p, a.row_ptr, a.col, rows, 1, min(p.run, kStrip), a.threads);

#pragma omp parallel for schedule(static) collapse(2) num_threads(a.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t block = 0; block < l.row_blocks; ++block) {
      const int64_t begin = block * l.row_block, end = min(rows, begin + l.row_block);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float* source = scratch<float>(Scratch::source, p.source_size);
      float* target = scratch<float>(Scratch::target, (end - begin) * p.target_size);
      pack_source(g, l, a.source, a.source_channels_last, first, images, source);
      for (int64_t run = 0; run < p.runs; ++run)
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
          for (int64_t q = 0; q < streams.panels; ++q) {
            const int32_t* segments = streams.segment + q * rows + begin;
            axpy_panel(v_end - v,
                       {end - begin, {segments, segments + rows}, a.values, streams.offset, p.lanes,
                        source + run * p.source_run + v * kWidth, q == 0, a.bias ? a.bias + begin : nullptr,
                        target + run * p.target_run + v * kWidth, p.target_size});
          }
        }
      unpack_target(g, l, target, begin, end, a.target_channels_last, first, images, a.target);
    }
}

// Per chunk of images: eight weights of a row at a time share each load of dY; threads own private sums, added in
// thread order.
void shifted_correlation(const ShiftedCorrelationArgs& a) {
  const Conv2dGeometry& g = *a.geometry;
  const int64_t rows = g.target_channels, nnz = a.row_ptr[rows];
  const bool empty = g.batch == 0 || g.h.grid * g.w.grid == 0;
  float* partial = scratch<float>(Scratch::partial, nnz * a.threads);
  double* partial_bias = scratch<double>(Scratch::bias, rows * a.threads);
  for (int64_t k = 0; k < nnz * a.threads; ++k) partial[k] = 0.f;
  for (int64_t r = 0; r < rows * a.threads; ++r) partial_bias[r] = 0.;

  if (!empty) {
    const Layout l = lay_out(g, rows, a.threads);
    const Planes& p = l.planes;
    const int64_t vectors = p.run / kWidth, strips = ceil_div(p.run, kDotFloats);
    const int64_t together = max(1, min(p.runs, kDotFloats / p.run));  // short runs are correlated several at a time
    const Streams streams =
        index_streams(g, p, a.row_ptr, a.col, rows, together, min(p.run, kDotFloats), a.threads);
    const int64_t tasks = p.chunks * l.row_blocks;
#pragma omp parallel for schedule(static, 1) num_threads(a.threads)
    for (int64_t worker = 0; worker < a.threads; ++worker) {
      float* dvalues = partial + worker * nnz;
      double* dbias = partial_bias + worker * rows;
      for (int64_t task = tasks * worker / a.threads; task < tasks * (worker + 1) / a.threads; ++task) {
        const int64_t begin = task % l.row_blocks * l.row_block, end = min(rows, begin + l.row_block);
        const int64_t first = task / l.row_blocks * p.images, images = min(p.images, g.batch - first);
        float* source = scratch<float>(Scratch::source, p.source_size);
        float* target = scratch<float>(Scratch::target, (end - begin) * p.target_size);
        pack_source(g, l, a.source, a.source_channels_last, first, images, source);
        pack_target(g, l, a.target, a.target_channels_last, first, images, begin, end, target);
        if (a.dbias)
          for (int64_t r = begin; r < end; ++r)
            dbias[r] += sum_in_double(target + (r - begin) * p.target_size, p.target_size);
        for (int64_t run = 0; run < p.runs; run += together)
          for (int64_t s = 0; s < strips; ++s) {
            const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
            for (int64_t q = 0; q < streams.panels; ++q) {
              const int32_t* segments = streams.segment + q * rows + begin;
              dot_panel({end - begin, {segments, segments + rows}, streams.offset, p.lanes,
                         source + run * p.source_run + v * kWidth, target + run * p.target_run + v * kWidth,
                         p.target_size, (v_end - v) * kWidth, min(together, p.runs - run), p.source_run, p.target_run,
                         dvalues});
            }
          }
      }
    }
  }
  for (int64_t k = 0; k < nnz; ++k) {
    float sum = 0.f;
    for (int64_t t = 0; t < a.threads; ++t) sum += partial[t * nnz + k];
    a.dvalues[k] = sum;
  }
  for (int64_t k = nnz; k < a.capacity; ++k) a.dvalues[k] = 0.f;
  if (a.dbias)
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.;
      for (int64_t t = 0; t < a.threads; ++t) sum += partial_bias[t * rows + r];
      a.dbias[r] = static_cast<float>(sum);
    }
}

}  // namespace spfde::SPFDE_ISA
