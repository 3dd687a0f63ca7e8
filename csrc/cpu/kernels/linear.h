// The products of a linear layer (or pointwise convolution) around the inner loops: how work is cut into chunks
// of lanes, panels of columns and shares of rows, and who packs what.
//
// With chunks enough for all threads a task packs its own, a panel at a time, so that packed activations never leave
// the core's caches. With few chunks the threads pack together, then split the rows.
#pragma once

#include "cpu/threads.h"
#include "lanes.h"
#include "per_thread.h"
#include "spfde/block_index.h"
#include "spfde/exec.h"
#include "stream.h"

namespace spfde::cpu::SPFDE_ISA {

struct LinearProblem {
  int64_t rows, cols, batch, positions;  // see lanes.h
  int64_t height, width;                 // of a block; 1 x 1 for single weights
  const int32_t* row_ptr;                // of block rows, into the columns of blocks
  const int32_t* col;
  int threads;

  int64_t block_rows() const { return ceil_div(rows, height); }
  int64_t padded() const { return block_rows() * height; }
  double density() const { return row_ptr[block_rows()] / (static_cast<double>(max(1, block_rows())) * max(1, cols)); }
};

template <typename Args>
inline LinearProblem linear_problem(const Args& a, const BlockIndex& index, const Exec& exec) {
  LinearProblem p{a.rows,      a.cols,         a.batch,        a.positions, index.height,
                  index.width, index.unit_ptr, index.unit_col, exec.threads};
  const int64_t per_lane = p.row_ptr[p.block_rows()] * p.height + a.rows + a.cols;
  p.threads = worth_threads(exec.threads, static_cast<double>(a.batch) * per_lane);
  return p;
}

struct Panels {
  int64_t width, count;  // columns per panel
  int32_t* segment;      // [(count + 1) * block rows]

  Segments of(int64_t p, int64_t block_rows, int64_t begin) const {
    const int32_t* at = segment + p * block_rows + begin;
    return {at, at + block_rows};
  }
};

inline Panels plan_panels(const LinearProblem& a, int64_t lanes, int64_t most, Scratch& scratch) {
  const int64_t block_rows = a.block_rows();
  const int64_t width = round_up(min(most, panel_streams(lanes * int64_t{sizeof(float)}, a.density())), a.width);
  const int64_t count = max(1, ceil_div(a.cols, width));
  return {width, count, take<int32_t>(scratch, (count + 1) * block_rows)};
}

// ---- inside a parallel region: loops shared by its threads --------------------------------------------------------

inline void split_rows(const LinearProblem& a, const Panels& panels) {
  const int64_t block_rows = a.block_rows();
#pragma omp for schedule(static)
  for (int64_t r = 0; r < block_rows; ++r)
    split_row(a.row_ptr, a.col, block_rows, r, a.cols, panels.count, panels.width, 0, panels.segment);
}

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

constexpr double kDense = 0.08;  // above it a row has weights enough for wide strips

// Chunks that a task packs together, so that memory is read and written in runs of several cache lines.
inline int64_t chunks_per_task(const Lanes& l) { return l.positions > 1 ? max(1, kStrip / l.lanes) : 1; }

// Whether every thread has tasks of its own.
inline bool enough(int64_t tasks, int threads) { return tasks % threads == 0 || tasks >= 4 * threads; }

// y = W x, with multiply(vectors, block rows, their segments, source, pitch, first row, sum).
template <typename Multiply>
void linear_product(const LinearProblem& a, int64_t strip, const float* x, float* y, Multiply multiply) {
  if (a.batch == 0 || a.rows == 0) return;
  const int64_t block_rows = a.block_rows();
  const Lanes l = split_batch(a.batch, a.positions, strip);
  Scratch scratch;
  const Panels panels = plan_panels(a, l.lanes, INT64_MAX, scratch);
  const int64_t per_task = chunks_per_task(l), tasks = ceil_div(l.chunks, per_task);
  const bool own = enough(tasks, a.threads);
  const int64_t most = max(1, (own ? 512 : 256) / a.height);
  const int64_t share = min(most, own ? block_rows : ceil_div(block_rows, ceil_div(a.threads, l.chunks)));
  const int64_t shares = ceil_div(block_rows, share), stride = a.cols * l.lanes;
  const int64_t target_stride = share * a.height * l.lanes;
  const PerThread<float> targets(scratch, a.threads, (own ? per_task : 1) * target_stride);
  const PerThread<float> sources(scratch, own ? a.threads : 0, per_task * stride);
  float* packed = take<float>(scratch, own ? 0 : l.chunks * stride);

  // Shares [s, s_end) of chunks [chunk, chunk + count).
  const auto run = [&](int64_t chunk, int64_t count, int64_t s, int64_t s_end, float* source, bool pack) {
    float* my_targets = targets.mine();
    for (; s < s_end; ++s, pack = false) {
      const int64_t begin = s * share, end = min(block_rows, begin + share);
      const int64_t row = begin * a.height, rows = min(a.rows, end * a.height) - row;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t column = p * panels.width;
        if (pack)
          pack_lanes(l, chunk, count, column, min(a.cols, column + panels.width), x, a.cols, source + column * l.lanes,
                     stride);
        for (int64_t t = 0; t < count; ++t) {
          float* target = my_targets + t * target_stride;
          const int64_t direct = l.direct(chunk + t, a.rows);
          Sum sum{p == 0 ? nullptr : target, l.lanes, target, l.lanes, nullptr, rows};
          if (direct >= 0 && p + 1 == panels.count) {
            sum.to = y + direct + row * l.positions;
            sum.to_pitch = l.positions;
          }
          multiply(l.lanes / kWidth, end - begin, panels.of(p, block_rows, begin), source + t * stride, l.lanes, row,
                   sum);
        }
      }
      for (int64_t t = 0; t < count; ++t)
        if (l.direct(chunk + t, a.rows) < 0)
          unpack_lanes(l, chunk + t, 1, row, row + rows, my_targets + t * target_stride, 0, y, a.rows);
    }
  };

#pragma omp parallel num_threads(a.threads)
  {
    split_rows(a, panels);
    if (own) {
#pragma omp for schedule(static)
      for (int64_t task = 0; task < tasks; ++task)
        run(task * per_task, min(per_task, l.chunks - task * per_task), 0, shares, sources.mine(), true);
    } else {
      pack_all(l, x, a.cols, a.cols, packed);
#pragma omp for schedule(static) collapse(2)
      for (int64_t chunk = 0; chunk < l.chunks; ++chunk)
        for (int64_t s = 0; s < shares; ++s) run(chunk, 1, s, s + 1, packed + chunk * stride, false);
    }
  }
}

// dx = W^T dy, with scatter(vectors, segments, columns' pitch, panel of dx, dy): a panel of dX stays close while every
// row of dY adds to it.
template <typename Scatter>
void linear_transposed_product(const LinearProblem& a, int64_t strip, const float* dy, float* dx, Scatter scatter) {
  if (a.batch == 0 || a.cols == 0) return;
  const int64_t block_rows = a.block_rows(), padded = a.padded();
  const Lanes l = split_batch(a.batch, a.positions, strip);
  const int64_t per_task = chunks_per_task(l), tasks = ceil_div(l.chunks, per_task);
  const bool own = enough(tasks, a.threads);
  Scratch scratch;
  const Panels panels =
      plan_panels(a, l.lanes, own ? INT64_MAX : ceil_div(a.cols, ceil_div(a.threads, l.chunks)), scratch);
  const int64_t stride = padded * l.lanes, target_stride = panels.width * l.lanes;
  const PerThread<float> targets(scratch, a.threads, (own ? per_task : 1) * target_stride);
  const PerThread<float> sources(scratch, own ? a.threads : 0, per_task * stride);
  float* packed = take<float>(scratch, own ? 0 : l.chunks * stride);

  const auto run = [&](int64_t chunk, int64_t count, int64_t p, const float* source) {
    const int64_t begin = p * panels.width, end = min(a.cols, begin + panels.width);
    float* my_targets = targets.mine();
    for (int64_t t = 0; t < count; ++t) {
      float* target = my_targets + t * target_stride;
      for (int64_t q = 0; q < (end - begin) * l.lanes; ++q) target[q] = 0.f;
      scatter(l.lanes / kWidth, panels.of(p, block_rows, 0), l.lanes, target - begin * l.lanes, source + t * stride);
    }
    unpack_lanes(l, chunk, count, begin, end, my_targets, target_stride, dx, a.cols);
  };

#pragma omp parallel num_threads(a.threads)
  {
    split_rows(a, panels);
    if (own) {
#pragma omp for schedule(static)
      for (int64_t task = 0; task < tasks; ++task) {
        const int64_t chunk = task * per_task, count = min(per_task, l.chunks - chunk);
        float* source = sources.mine();
        pack_lanes(l, chunk, count, 0, a.rows, dy, a.rows, source, stride);
        for (int64_t t = 0; t < count; ++t)
          for (int64_t q = a.rows * l.lanes; q < stride; ++q) source[t * stride + q] = 0.f;
        for (int64_t p = 0; p < panels.count; ++p) run(chunk, count, p, source);
      }
    } else {
      pack_all(l, dy, a.rows, padded, packed);
#pragma omp for schedule(static) collapse(2)
      for (int64_t chunk = 0; chunk < l.chunks; ++chunk)
        for (int64_t p = 0; p < panels.count; ++p) run(chunk, 1, p, packed + chunk * stride);
    }
  }
}

}  // namespace spfde::cpu::SPFDE_ISA
