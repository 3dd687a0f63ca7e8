// The two products of one chunk of images, whose planes are packed: all its runs, strips and panels.
#pragma once

#include "conv2d_chunk.h"

namespace spfde::cpu::SPFDE_ISA {

// Runs that a strip is of: two where they fit, because borders are then shared.
inline int64_t strip_runs(const Planes& p) { return p.runs > 1 && 2 * p.run <= kStrip ? 2 : 1; }

// Calls body(run, runs, vector, vectors) for every strip of a target.
template <typename Body>
inline void for_each_strip(const Planes& p, int64_t strip_runs, Body body) {
  const int64_t vectors = p.run / kWidth;
  for (int64_t run = 0; run < p.runs;) {
    const int64_t runs = min(strip_runs, p.runs - run), strips = ceil_div(vectors, kStreamVectors / runs);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
      body(run, runs, v, v_end - v);
    }
    run += runs;
  }
}

// Where the streams of single weights lie, in panel order: panel after panel, in each of which the rows follow each
// other. A row's weights of a panel are one run of what is stored.
struct OrderedStreams {
  int64_t rows, panels;
  int32_t* first;   // [panels * rows + 1] a row's first weight of a panel, in panel order
  int32_t* stored;  // [(panels + 1) * rows] which of the stored ones it is
  int32_t* offset;  // [nnz] position in the source planes

  // One visit to a row covers a strip of `runs` runs.
  OrderedStreams(const Conv2dGeometry& g, const Planes& planes, const int32_t* row_ptr, const int32_t* col,
                 int64_t rows, int64_t runs, int threads, Scratch& scratch)
      : rows(rows) {
    const int64_t taps = g.h.taps * g.w.taps, row_group = rows / g.groups, group = g.source_channels / g.groups;
    const int64_t panel = panel_channels(g, planes, row_ptr, rows, runs);
    panels = max(1, ceil_div(g.source_channels, panel));
    first = take<int32_t>(scratch, panels * rows + 1);
    stored = take<int32_t>(scratch, (panels + 1) * rows);
    offset = take<int32_t>(scratch, row_ptr[rows]);
    const int32_t* position = column_positions(g, planes, scratch);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; ++r)
      split_row(row_ptr, col, rows, r, group * taps, panels, panel * taps, r / row_group * group * taps, stored);
    first[0] = 0;
    for (int64_t i = 0; i < panels * rows; ++i) first[i + 1] = first[i] + stored[i + rows] - stored[i];
    each(threads, [&](int64_t r, int64_t k, int64_t from, int64_t n) {
      const int32_t base = static_cast<int32_t>(r / row_group * group * planes.channel_stride);
      for (int64_t i = 0; i < n; ++i) offset[k + i] = base + position[col[from + i]];
    });
  }

  // Those of panel q in rows from `begin` on.
  Segments of(int64_t q, int64_t begin) const {
    const int32_t* segments = first + q * rows + begin;
    return {segments, segments + 1};
  }

  // Calls move(row, where in panel order, which stored one is there, how many) for every run of weights.
  template <typename Move>
  void each(int threads, Move move) const {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = r; i < panels * rows; i += rows) move(r, first[i], stored[i], first[i + 1] - first[i]);
  }

 private:
  // Twice as many lanes make streams twice as long: panels then hold fewer of them, but not half as many.
  static int64_t panel_channels(const Conv2dGeometry& g, const Planes& p, const int32_t* row_ptr, int64_t rows,
                                int64_t runs) {
    constexpr PanelBytes kPanel = kWidth > 8 ? PanelBytes{40 * 1024, 64 * 1024} : PanelBytes{};
    const int64_t floats = (runs + p.shift_rows) * (min(p.run, kStrip / runs) + p.shift_floats) * g.planes;
    const double weights = row_ptr[rows] / (static_cast<double>(rows) * max(1, g.source_channels / g.groups));
    return panel_streams(floats * int64_t{sizeof(float)}, weights, kPanel);
  }
};

// target = the rows' weights times the shifted source: rows [begin, end), the first of them at `target`.
struct ChunkProduct {
  Planes planes;
  int64_t strip;  // its runs
  OrderedStreams streams;
  float* values;  // in panel order
  const float* bias;

  ChunkProduct(const ShiftedProductArgs& a, const Planes& p, int64_t rows, int threads, Scratch& scratch)
      : planes(p),
        strip(strip_runs(p)),
        streams(a.geometry, p, a.row_ptr, a.col, rows, strip, threads, scratch),
        values(take<float>(scratch, a.row_ptr[rows])),
        bias(a.bias) {
    streams.each(threads, [&](int64_t, int64_t k, int64_t stored, int64_t n) {
      for (int64_t i = 0; i < n; ++i) values[k + i] = a.values[stored + i];
    });
  }

  // A panel of channels stays close while every row uses it; sums stay in registers over a row's weights of the panel.
  void run(int64_t begin, int64_t end, const float* source, float* target) const {
    const Planes& p = planes;
    for_each_strip(p, strip, [&](int64_t run, int64_t runs, int64_t v, int64_t vectors) {
      float* sums = target + run * p.target_run + v * kWidth;
      for (int64_t q = 0; q < streams.panels; ++q)
        axpy_panel(runs, vectors,
                   {end - begin,
                    streams.of(q, begin),
                    values,
                    streams.offset,
                    p.lanes,
                    source + run * p.source_run + v * kWidth,
                    {q == 0 ? nullptr : sums, p.target_size, sums, p.target_size, bias ? bias + begin : nullptr,
                     end - begin, p.target_run},
                    p.source_run});
    });
  }
};

// dvalues += <target, shifted source> for the weights of rows [begin, end), in panel order.
struct ChunkCorrelation {
  Planes planes;
  int64_t strip;  // its runs
  OrderedStreams streams;

  ChunkCorrelation(const ShiftedCorrelationArgs& a, const Planes& p, int threads, Scratch& scratch)
      : planes(p),
        strip(strip_runs(p)),
        streams(a.geometry, p, a.row_ptr, a.col, a.geometry.target_channels, strip, threads, scratch) {}

  // target: that of row `begin`, its runs `target_run` floats apart, its rows `target_pitch`.
  void run(int64_t begin, int64_t end, const float* source, const float* target, int64_t target_run,
           int64_t target_pitch, float* dvalues) const {
    const Planes& p = planes;
    for_each_strip(p, strip, [&](int64_t run, int64_t runs, int64_t v, int64_t vectors) {
      for (int64_t q = 0; q < streams.panels; ++q)
        dot_strip({end - begin, streams.of(q, begin), streams.offset, p.lanes, source + run * p.source_run + v * kWidth,
                   target + run * target_run + v * kWidth, target_pitch, vectors * kWidth, runs, p.source_run,
                   target_run, dvalues});
    });
  }
};

// A thread's own sums of the weight gradient, in panel order, added in thread order at the end.
struct PrivateSums {
  int64_t weights, rows;
  int threads;
  float* dvalues;
  double* dbias;

  PrivateSums(const ShiftedCorrelationArgs& a, int threads, Scratch& scratch)
      : weights(a.row_ptr[a.geometry.target_channels]),
        rows(a.geometry.target_channels),
        threads(threads),
        dvalues(take<float>(scratch, weights * threads)),
        dbias(take<double>(scratch, rows * threads)) {
    clear(dvalues, weights * threads);
    clear(dbias, rows * threads);
  }

  void add(const ShiftedCorrelationArgs& a, const OrderedStreams& order) const {
    order.each(threads, [&](int64_t, int64_t k, int64_t stored, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        float sum = 0.f;
        for (int64_t t = 0; t < threads; ++t) sum += dvalues[t * weights + k + i];
        a.dvalues[stored + i] = sum;
      }
    });
    clear(a.dvalues + weights, a.capacity - weights);
    if (a.dbias) add_partials(dbias, rows, threads, rows, a.dbias);
  }
};

}  // namespace spfde::cpu::SPFDE_ISA
