// The weight gradient of a linear layer around its inner loop, cut like the products in linear.h. Sums are made in the
// order of the visits and brought to their slots at the end.
#pragma once

#include "linear.h"

namespace spfde::cpu::SPFDE_ISA {

struct LinearGradient {
  int64_t capacity;  // floats of dvalues
  float* dvalues;
  float* dbias;  // or nullptr
};

// sums[r] += the lanes of row r, for `rows` rows: in float over the lanes of one chunk, in double over the chunks.
inline void add_bias(const Lanes& l, const float* target, int64_t rows, double* sums) {
  const auto lanes_of = [&](int64_t r) {
    const float* row = target + r * l.lanes;
    Vec sum = load(row);
    for (int64_t q = kWidth; q < l.lanes; q += kWidth) sum += load(row + q);
    return sum;
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const Quad four = sum_each(lanes_of(r), lanes_of(r + 1), lanes_of(r + 2), lanes_of(r + 3));
    for (int64_t i = 0; i < 4; ++i) sums[r + i] += four[i];
  }
  for (; r < rows; ++r) sums[r] += sum_each(lanes_of(r), Vec{}, Vec{}, Vec{})[0];
}

// Threads own chunks and private sums, which are added in thread order.
template <typename Correlate, typename Place>
void correlate_own_chunks(const LinearProblem& a, const Lanes& l, const float* dy, const float* x,
                          const LinearGradient& out, Scratch& scratch, Correlate correlate, Place place) {
  const PanelCut& cut = a.order.cut;
  const int64_t padded = a.padded(), stored = a.stored * a.height;
  const PerThread<float> sources(scratch, a.threads, min(cut.width, a.cols) * l.lanes);
  const PerThread<float> targets(scratch, a.threads, padded * l.lanes);
  const PerThread<float> partial(scratch, a.threads, stored);
  const PerThread<double> bias(scratch, a.threads, a.rows);

#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(static, 1)
    for (int64_t worker = 0; worker < a.threads; ++worker) {
      float *source = sources.of(worker), *target = targets.of(worker), *dvalues = partial.of(worker);
      double* sums = bias.of(worker);
      clear(sums, a.rows);
      clear(target + a.rows * l.lanes, (padded - a.rows) * l.lanes);
      const int64_t first = l.chunks * worker / a.threads;
      for (int64_t chunk = first; chunk < l.chunks * (worker + 1) / a.threads; ++chunk) {
        pack_lanes(l, chunk, 1, 0, a.rows, dy, a.rows, target, 0);
        if (out.dbias) add_bias(l, target, a.rows, sums);
        for (int64_t p = 0; p < cut.panels; ++p) {
          const int64_t column = p * cut.width;
          pack_lanes(l, chunk, 1, column, min(a.cols, column + cut.width), x, a.cols, source, 0);
          for (int64_t s = 0; s < cut.shares; ++s)
            correlate(a.visits(s, p), source, l.lanes, target + a.first_row(s) * l.lanes, dvalues, chunk == first);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < a.stored; ++k)
      for (int64_t i = 0; i < a.height; ++i) {
        float sum = 0.f;
        for (int64_t t = 0; t < a.threads; ++t) sum += partial.of(t)[k * a.height + i];
        out.dvalues[place(a.order.slot[k], i)] = sum;
      }
  }
  for (int64_t r = 0; out.dbias && r < a.rows; ++r) {
    double sum = 0.;
    for (int64_t t = 0; t < a.threads; ++t) sum += bias.of(t)[r];
    out.dbias[r] = static_cast<float>(sum);
  }
}

// Threads pack all chunks together, then own shares of the rows.
template <typename Correlate, typename Place>
void correlate_own_rows(const LinearProblem& a, const Lanes& l, const float* dy, const float* x,
                        const LinearGradient& out, Scratch& scratch, Correlate correlate, Place place) {
  const PanelCut& cut = a.order.cut;
  const int64_t padded = a.padded();
  float* source = take<float>(scratch, l.chunks * a.cols * l.lanes);
  float* target = take<float>(scratch, l.chunks * padded * l.lanes);
  float* dvalues = take<float>(scratch, a.stored * a.height);
  double* bias = take<double>(scratch, a.rows);

#pragma omp parallel num_threads(a.threads)
  {
    pack_all(l, x, a.cols, a.cols, source);
    pack_all(l, dy, a.rows, padded, target);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < cut.shares; ++s) {
      const int64_t row = a.first_row(s), end = a.last_row(s);
      clear(bias + row, end - row);
      for (int64_t chunk = 0; chunk < l.chunks; ++chunk) {
        const float* rows = target + (chunk * padded + row) * l.lanes;
        if (out.dbias) add_bias(l, rows, end - row, bias + row);
        for (int64_t p = 0; p < cut.panels; ++p)
          correlate(a.visits(s, p), source + (chunk * a.cols + p * cut.width) * l.lanes, l.lanes, rows, dvalues,
                    chunk == 0);
      }
      for (int64_t k = a.order.start[s * cut.panels]; k < a.order.start[(s + 1) * cut.panels]; ++k)
        for (int64_t i = 0; i < a.height; ++i) out.dvalues[place(a.order.slot[k], i)] = dvalues[k * a.height + i];
      for (int64_t r = row; out.dbias && r < end; ++r) out.dbias[r] = static_cast<float>(bias[r]);
    }
  }
}

// dW = dy x^T at the stored positions, with correlate(visits, source of the panel, pitch, target of the share, dvalues
// in the visits' order, whether they are written over). place(slot, i): where in dvalues row i of a weight belongs.
template <typename Correlate, typename Place>
void linear_correlation(const LinearProblem& a, int64_t strip, const float* dy, const float* x,
                        const LinearGradient& out, Correlate correlate, Place place) {
  if (a.batch == 0 || a.rows == 0) {
    clear(out.dvalues, out.capacity);
    if (out.dbias) clear(out.dbias, a.rows);
    return;
  }
  const Lanes l = split_batch(a.batch, a.positions, strip);
  Scratch scratch;
  if (l.chunks >= 4 * a.threads)
    correlate_own_chunks(a, l, dy, x, out, scratch, correlate, place);
  else
    correlate_own_rows(a, l, dy, x, out, scratch, correlate, place);
}

}  // namespace spfde::cpu::SPFDE_ISA
