// The products of a linear layer (or pointwise convolution) around the inner loops: how work is cut into chunks
// of lanes, panels of columns and shares of rows, and who packs what.
//
// With chunks enough for all threads a task packs its own, a panel at a time, so that packed activations never leave
// the core's caches. With few chunks the threads pack together, then split the rows.
#pragma once

#include "cpu/panel_order.h"
#include "cpu/threads.h"
#include "lanes.h"
#include "per_thread.h"
#include "spfde/block_index.h"
#include "spfde/exec.h"
#include "visits.h"

namespace spfde::cpu::SPFDE_ISA {

// Rows are block rows and weights are units, where a block is `height` > 1 rows high.
struct LinearProblem {
  int64_t rows, cols, batch, positions;  // see lanes.h; rows of single weights
  int64_t height, block_rows;
  int64_t stored;  // weights
  PanelOrder order;
  int threads;

  int64_t padded() const { return block_rows * height; }
  int64_t first_row(int64_t share) const { return share * order.cut.share * height; }
  int64_t last_row(int64_t share) const { return min(rows, first_row(share + 1)); }
  Visits visits(int64_t share, int64_t panel) const { return visits_of(order, block_rows, share, panel); }
};

// order: nullptr to have it made, in `scratch`.
template <typename Args>
inline LinearProblem linear_problem(const Args& a, const BlockIndex& index, const int32_t* perm,
                                    const PanelOrder* order, const Exec& exec, Scratch& scratch) {
  const int64_t block_rows = ceil_div(a.rows, index.height), stored = index.unit_ptr[block_rows];
  const double per_lane = static_cast<double>(stored * index.height + a.rows + a.cols);
  const int threads = worth_threads(exec.threads, a.batch * per_lane);
  return {a.rows,
          a.cols,
          a.batch,
          a.positions,
          index.height,
          block_rows,
          stored,
          order ? *order
                : make_panel_order(panel_cut(block_rows, a.cols, stored, index.height), block_rows, index.unit_ptr,
                                   index.unit_col, perm, threads, scratch),
          threads};
}

// ---- inside a parallel region: loops shared by its threads --------------------------------------------------------

// packed[chunk][feature][lane] for all chunks; features in [features, padded) are zero.
inline void pack_all(const Lanes& l, const float* x, int64_t features, int64_t padded, float* packed) {
  constexpr int64_t kStep = 128;
  const int64_t steps = ceil_div(padded, kStep);
#pragma omp for schedule(static) collapse(2)
  for (int64_t chunk = 0; chunk < l.chunks; ++chunk)
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t begin = s * kStep, end = min(padded, begin + kStep), real = max(begin, min(end, features));
      float* at = packed + (chunk * padded + begin) * l.lanes;
      pack_lanes(l, chunk, 1, begin, real, x, features, at, 0);
      for (int64_t q = (real - begin) * l.lanes; q < (end - begin) * l.lanes; ++q) at[q] = 0.f;
    }
}

// -------------------------------------------------------------------------------------------------------------------

// Lanes of a chunk for single weights: panels of many columns hold shorter streams (see `panel_cut`), but where lanes
// are neighbours in memory short runs of them cost more than streams from L2.
inline int64_t strip_of(const LinearProblem& a) {
  return a.order.cut.width > 128 && a.positions == 1 ? kStrip / 2 : kStrip;
}

// Chunks that a task packs together, so that memory is read and written in runs of several cache lines.
inline int64_t chunks_per_task(const Lanes& l) { return l.positions > 1 ? max(1, kStrip / l.lanes) : 1; }

// Whether every thread has tasks of its own.
inline bool enough(int64_t tasks, int threads) { return tasks % threads == 0 || tasks >= 4 * threads; }

// y = W x, with multiply(vectors, visits, source of the panel, pitch, first row, sum).
template <typename Multiply>
void linear_product(const LinearProblem& a, int64_t strip, const float* x, float* y, Multiply multiply) {
  if (a.batch == 0 || a.rows == 0) return;
  const PanelCut& cut = a.order.cut;
  const Lanes l = split_batch(a.batch, a.positions, strip);
  Scratch scratch;
  const int64_t per_task = chunks_per_task(l), tasks = ceil_div(l.chunks, per_task);
  const bool own = enough(tasks, a.threads);
  const int64_t stride = a.cols * l.lanes, target_stride = cut.share * a.height * l.lanes;
  const PerThread<float> targets(scratch, a.threads, (own ? per_task : 1) * target_stride);
  const PerThread<float> sources(scratch, own ? a.threads : 0, per_task * stride);
  float* packed = take<float>(scratch, own ? 0 : l.chunks * stride);

  // Shares [s, s_end) of chunks [chunk, chunk + count).
  const auto run = [&](int64_t chunk, int64_t count, int64_t s, int64_t s_end, float* source, bool pack) {
    float* my_targets = targets.mine();
    for (; s < s_end; ++s, pack = false) {
      const int64_t row = a.first_row(s), rows = a.last_row(s) - row;
      for (int64_t p = 0; p < cut.panels; ++p) {
        const int64_t column = p * cut.width;
        float* panel = source + column * l.lanes;
        if (pack) pack_lanes(l, chunk, count, column, min(a.cols, column + cut.width), x, a.cols, panel, stride);
        for (int64_t t = 0; t < count; ++t) {
          float* target = my_targets + t * target_stride;
          const int64_t direct = l.direct(chunk + t, a.rows);
          Sum sum{p == 0 ? nullptr : target, l.lanes, target, l.lanes, nullptr, rows};
          if (direct >= 0 && p + 1 == cut.panels) {
            sum.to = y + direct + row * l.positions;
            sum.to_pitch = l.positions;
          }
          multiply(l.lanes / kWidth, a.visits(s, p), panel + t * stride, l.lanes, row, sum);
        }
      }
      for (int64_t t = 0; t < count; ++t)
        if (l.direct(chunk + t, a.rows) < 0)
          unpack_lanes(l, chunk + t, 1, row, row + rows, my_targets + t * target_stride, 0, y, a.rows);
    }
  };

#pragma omp parallel num_threads(a.threads)
  if (own) {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task)
      run(task * per_task, min(per_task, l.chunks - task * per_task), 0, cut.shares, sources.mine(), true);
  } else {
    pack_all(l, x, a.cols, a.cols, packed);
#pragma omp for schedule(static) collapse(2)
    for (int64_t chunk = 0; chunk < l.chunks; ++chunk)
      for (int64_t s = 0; s < cut.shares; ++s) run(chunk, 1, s, s + 1, packed + chunk * stride, false);
  }
}

// dx = W^T dy, with scatter(vectors, visits, pitch, panel of dx, first row of dy): a panel of dX stays close while
// every row of dY adds to it.
template <typename Scatter>
void linear_transposed_product(const LinearProblem& a, int64_t strip, const float* dy, float* dx, Scatter scatter) {
  if (a.batch == 0 || a.cols == 0) return;
  const PanelCut& cut = a.order.cut;
  const Lanes l = split_batch(a.batch, a.positions, strip);
  const int64_t per_task = chunks_per_task(l), tasks = ceil_div(l.chunks, per_task);
  const bool own = enough(tasks, a.threads);
  Scratch scratch;
  const int64_t stride = a.padded() * l.lanes, target_stride = min(cut.width, a.cols) * l.lanes;
  const PerThread<float> targets(scratch, a.threads, (own ? per_task : 1) * target_stride);
  const PerThread<float> sources(scratch, own ? a.threads : 0, per_task * stride);
  float* packed = take<float>(scratch, own ? 0 : l.chunks * stride);

  const auto run = [&](int64_t chunk, int64_t count, int64_t p, const float* source) {
    const int64_t begin = p * cut.width, end = min(a.cols, begin + cut.width);
    float* my_targets = targets.mine();
    for (int64_t t = 0; t < count; ++t) {
      float* target = my_targets + t * target_stride;
      clear(target, (end - begin) * l.lanes);
      for (int64_t s = 0; s < cut.shares; ++s)
        scatter(l.lanes / kWidth, a.visits(s, p), l.lanes, target, source + t * stride + a.first_row(s) * l.lanes);
    }
    unpack_lanes(l, chunk, count, begin, end, my_targets, target_stride, dx, a.cols);
  };

#pragma omp parallel num_threads(a.threads)
  if (own) {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t chunk = task * per_task, count = min(per_task, l.chunks - chunk);
      float* source = sources.mine();
      pack_lanes(l, chunk, count, 0, a.rows, dy, a.rows, source, stride);
      for (int64_t t = 0; t < count; ++t) clear(source + t * stride + a.rows * l.lanes, stride - a.rows * l.lanes);
      for (int64_t p = 0; p < cut.panels; ++p) run(chunk, count, p, source);
    }
  } else {
    pack_all(l, dy, a.rows, a.padded(), packed);
#pragma omp for schedule(static) collapse(2)
    for (int64_t chunk = 0; chunk < l.chunks; ++chunk)
      for (int64_t p = 0; p < cut.panels; ++p) run(chunk, 1, p, packed + chunk * stride);
  }
}

}  // namespace spfde::cpu::SPFDE_ISA
