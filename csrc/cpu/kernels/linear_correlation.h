// The weight gradient of a linear layer around its inner loop, cut like the products in linear.h.
#pragma once

#include "linear.h"

namespace spfde::cpu::SPFDE_ISA {

struct LinearGradient {
  int64_t stored, capacity;  // floats of dvalues that are live, and all of them
  float* dvalues;
  float* dbias;  // or nullptr
};

inline void add_bias(const Lanes& l, const float* target, int64_t begin, int64_t end, double* sums) {
  for (int64_t r = begin; r < end; ++r) sums[r] += sum_in_double(target + r * l.lanes, l.lanes);
}

// Threads own chunks and private sums, which are added in thread order.
template <typename Correlate>
void correlate_own_chunks(const LinearProblem& a, const Lanes& l, const Panels& panels, const float* dy, const float* x,
                          const LinearGradient& out, Scratch& scratch, Correlate correlate) {
  const int64_t block_rows = a.block_rows(), padded = a.padded();
  const PerThread<float> sources(scratch, a.threads, a.cols * l.lanes);
  const PerThread<float> targets(scratch, a.threads, padded * l.lanes);
  const PerThread<float> partial(scratch, a.threads, out.stored);
  const PerThread<double> bias(scratch, a.threads, a.rows);

#pragma omp parallel num_threads(a.threads)
  {
    split_rows(a, panels);
#pragma omp for schedule(static, 1)
    for (int64_t worker = 0; worker < a.threads; ++worker) {
      float *source = sources.of(worker), *target = targets.of(worker), *dvalues = partial.of(worker);
      double* sums = bias.of(worker);
      for (int64_t k = 0; k < out.stored; ++k) dvalues[k] = 0.f;
      for (int64_t r = 0; r < a.rows; ++r) sums[r] = 0.;
      for (int64_t q = a.rows * l.lanes; q < padded * l.lanes; ++q) target[q] = 0.f;
      for (int64_t chunk = l.chunks * worker / a.threads; chunk < l.chunks * (worker + 1) / a.threads; ++chunk) {
        pack_lanes(l, chunk, 1, 0, a.rows, dy, a.rows, target, 0);
        if (out.dbias) add_bias(l, target, 0, a.rows, sums);
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t column = p * panels.width, end = min(a.cols, column + panels.width);
          pack_lanes(l, chunk, 1, column, end, x, a.cols, source + column * l.lanes, 0);
          correlate(block_rows, panels.of(p, block_rows, 0), source, l.lanes, target, dvalues);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < out.stored; ++k)
      for (int64_t t = 0; t < a.threads; ++t) out.dvalues[k] += partial.of(t)[k];
  }
  for (int64_t r = 0; out.dbias && r < a.rows; ++r) {
    double sum = 0.;
    for (int64_t t = 0; t < a.threads; ++t) sum += bias.of(t)[r];
    out.dbias[r] = static_cast<float>(sum);
  }
}

// Threads pack all chunks together, then own shares of the rows.
template <typename Correlate>
void correlate_own_rows(const LinearProblem& a, const Lanes& l, const Panels& panels, const float* dy, const float* x,
                        const LinearGradient& out, Scratch& scratch, Correlate correlate) {
  const int64_t block_rows = a.block_rows(), padded = a.padded();
  const int64_t share = max(1, min(ceil_div(256, a.height), ceil_div(block_rows, 4 * a.threads)));
  const int64_t shares = ceil_div(block_rows, share);
  float* source = take<float>(scratch, l.chunks * a.cols * l.lanes);
  float* target = take<float>(scratch, l.chunks * padded * l.lanes);
  double* bias = take<double>(scratch, a.rows);

#pragma omp parallel num_threads(a.threads)
  {
    split_rows(a, panels);
    pack_all(l, x, a.cols, a.cols, source);
    pack_all(l, dy, a.rows, padded, target);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < shares; ++s) {
      const int64_t begin = s * share, end = min(block_rows, begin + share);
      const int64_t row = begin * a.height, row_end = min(a.rows, end * a.height);
      for (int64_t r = row; r < row_end; ++r) bias[r] = 0.;
      for (int64_t chunk = 0; chunk < l.chunks; ++chunk) {
        const float* rows = target + chunk * padded * l.lanes;
        if (out.dbias) add_bias(l, rows, row, row_end, bias);
        for (int64_t p = 0; p < panels.count; ++p)
          correlate(end - begin, panels.of(p, block_rows, begin), source + chunk * a.cols * l.lanes, l.lanes,
                    rows + row * l.lanes, out.dvalues);
      }
      for (int64_t r = row; out.dbias && r < row_end; ++r) out.dbias[r] = static_cast<float>(bias[r]);
    }
  }
}

// dW = dy x^T at the stored positions, with correlate(block rows, segments, source, pitch, target, dvalues). Sums have
// one order, whichever way work is cut.
template <typename Correlate>
void linear_correlation(const LinearProblem& a, const float* dy, const float* x, const LinearGradient& out,
                        Correlate correlate) {
  for (int64_t k = 0; k < out.capacity; ++k) out.dvalues[k] = 0.f;
  if (out.dbias)
    for (int64_t r = 0; r < a.rows; ++r) out.dbias[r] = 0.f;
  if (a.batch == 0 || a.rows == 0) return;

  // Longer strips mean fewer sums to fold, shorter ones more weights per visit to a row.
  const Lanes l = split_batch(a.batch, a.positions, a.height > 1 || a.density() > kDense ? 2 * kStrip : kStrip);
  Scratch scratch;
  const Panels panels = plan_panels(a, l.lanes, INT64_MAX, scratch);
  if (l.chunks >= 8 * a.threads)
    correlate_own_chunks(a, l, panels, dy, x, out, scratch, correlate);
  else
    correlate_own_rows(a, l, panels, dy, x, out, scratch, correlate);
}

}  // namespace spfde::cpu::SPFDE_ISA
