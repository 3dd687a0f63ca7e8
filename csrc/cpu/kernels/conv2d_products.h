// The two products of one chunk of images, whose planes are packed: all its runs, strips and panels.
#pragma once

#include "conv2d_chunk.h"

namespace spfde::cpu::SPFDE_ISA {

// Runs that a strip is of: two where fewer floats of a channel then serve each position, because borders are shared.
inline int64_t strip_runs(const Planes& p) {
  const auto floats_read = [&](int64_t runs) {
    const int64_t floats = min(p.run, kStrip / runs);
    return static_cast<double>((runs + p.shift_rows) * (floats + p.shift_floats)) / static_cast<double>(runs * floats);
  };
  return p.runs > 1 && floats_read(2) < floats_read(1) ? 2 : 1;
}

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

// target = the rows' weights times the shifted source: rows [begin, end), the first of them at `target`.
struct ChunkProduct {
  Planes planes;
  int64_t rows, strip;  // runs of a strip
  Streams streams;
  const float *values, *bias;

  ChunkProduct(const ShiftedProductArgs& a, const Planes& p, int64_t rows, int threads, Scratch& scratch)
      : planes(p),
        rows(rows),
        strip(strip_runs(p)),
        streams(index_streams(a.geometry, p, a.row_ptr, a.col, rows, 1, strip, min(p.run, kStrip / strip), threads,
                              scratch)),
        values(a.values),
        bias(a.bias) {}

  // A panel of channels stays close while every row uses it; sums stay in registers over a row's weights of the panel.
  void run(int64_t begin, int64_t end, const float* source, float* target) const {
    const Planes& p = planes;
    for_each_strip(p, strip, [&](int64_t run, int64_t runs, int64_t v, int64_t vectors) {
      float* sums = target + run * p.target_run + v * kWidth;
      for (int64_t q = 0; q < streams.panels; ++q) {
        const int32_t* segments = streams.segment + q * rows + begin;
        axpy_panel(runs, vectors,
                   {end - begin,
                    {segments, segments + rows},
                    values,
                    streams.offset,
                    p.lanes,
                    source + run * p.source_run + v * kWidth,
                    {q == 0 ? nullptr : sums, p.target_size, sums, p.target_size, bias ? bias + begin : nullptr,
                     end - begin, p.target_run},
                    p.source_run});
      }
    });
  }
};

// dvalues += <target, shifted source> for the weights of rows [begin, end).
struct ChunkCorrelation {
  Planes planes;
  int64_t rows, strip;  // runs of a strip
  Streams streams;

  ChunkCorrelation(const ShiftedCorrelationArgs& a, const Planes& p, int threads, Scratch& scratch)
      : planes(p),
        rows(a.geometry.target_channels),
        strip(strip_runs(p)),
        streams(index_streams(a.geometry, p, a.row_ptr, a.col, rows, 1, strip, min(p.run, kStrip / strip), threads,
                              scratch)) {}

  // target: that of row `begin`, its runs `target_run` floats apart, its rows `target_pitch`.
  void run(int64_t begin, int64_t end, const float* source, const float* target, int64_t target_run,
           int64_t target_pitch, float* dvalues) const {
    const Planes& p = planes;
    for_each_strip(p, strip, [&](int64_t run, int64_t runs, int64_t v, int64_t vectors) {
      for (int64_t q = 0; q < streams.panels; ++q) {
        const int32_t* segments = streams.segment + q * rows + begin;
        dot_strip({end - begin,
                   {segments, segments + rows},
                   streams.offset,
                   p.lanes,
                   source + run * p.source_run + v * kWidth,
                   target + run * target_run + v * kWidth,
                   target_pitch,
                   vectors * kWidth,
                   runs,
                   p.source_run,
                   target_run,
                   dvalues});
      }
    });
  }
};

// A thread's own sums of the weight gradient, added in thread order at the end.
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

  void add(const ShiftedCorrelationArgs& a) const {
    add_partials(dvalues, weights, threads, a.capacity, a.dvalues);
    if (a.dbias) add_partials(dbias, rows, threads, rows, a.dbias);
  }
};

}  // namespace spfde::cpu::SPFDE_ISA
