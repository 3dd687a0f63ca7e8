// The inner loops for blocks of `height` x `width` weights, over all block rows of one panel.
//
// A *unit* is one column of a block: `height` weights that share one input, hence one stream (see stream.h). Rows of a
// block row are taken four at a time, so each load of a stream feeds four multiply-adds.
#pragma once

#include <type_traits>

#include "simd.h"
#include "stream.h"

namespace spfde::cpu::SPFDE_ISA {

constexpr int kBlockVectors = 2;  // with four rows: eight accumulators, enough chains to hide the latency of an FMA
constexpr int kBlockStrip = kBlockVectors * kWidth;

struct BlockPanel {
  int64_t block_rows;
  Segments units;  // of every block row
  int64_t height, width;
  const float* values;    // [blocks, height, width]
  const int32_t* offset;  // [units]
  int64_t pitch;
};

// Calls body(first unit, weight of its row `row`) for every unit of block row b.
template <bool kColumn, typename Body>
inline void for_each_unit(const BlockPanel& p, int64_t b, int64_t row, Body body) {
  const int64_t width = kColumn ? 1 : p.width, step = p.height * width;
  const int64_t begin = p.units.begin[b], end = p.units.end[b];
  const float* weight = p.values + begin / width * step + row * width;
  for (int64_t u = begin; u < end; u += width, weight += step)
    for (int64_t c = 0; c < width; ++c) body(u + c, weight + c);
}

// acc = sum.from (or bias) of rows [r, r + N); there may be fewer rows than whole blocks have.
template <int N, int V>
[[gnu::always_inline]] inline void start_sums(const Sum& sum, int64_t r, Vec (&acc)[N][V]) {
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < V; ++v)
      acc[i][v] = sum.from                       ? load(sum.from + (r + i) * sum.from_pitch + v * kWidth)
                  : sum.bias && r + i < sum.rows ? broadcast(sum.bias[r + i])
                                                 : Vec{};
}

// sum.to = acc for those that exist.
template <int N, int V>
[[gnu::always_inline]] inline void finish_sums(const Sum& sum, int64_t r, const Vec (&acc)[N][V]) {
  for (int i = 0; i < N; ++i)
    if (r + i < sum.rows)
      for (int v = 0; v < V; ++v) store(sum.to + (r + i) * sum.to_pitch + v * kWidth, acc[i][v]);
}

// sum.to = sum.from (or bias) + sum over units of weight * stream, for rows [row, row + N) of every block row.
template <int N, int V, bool kColumn>
void block_axpy(const BlockPanel& panel, const float* source, const Sum& sum, int64_t row) {
  const BlockPanel p = panel;
  const int64_t width = kColumn ? 1 : p.width;
  for (int64_t b = 0; b < p.block_rows; ++b) {
    const int64_t r = b * p.height + row;
    Vec acc[N][V];
    start_sums(sum, r, acc);
    for_each_unit<kColumn>(p, b, row, [&](int64_t u, const float* weight) {
      const float* s = source + p.offset[u] * p.pitch;
      Vec x[V];
      for (int v = 0; v < V; ++v) x[v] = load(s + v * kWidth);
      for (int i = 0; i < N; ++i) {
        const Vec w = broadcast(weight[i * width]);
        for (int v = 0; v < V; ++v) acc[i][v] += w * x[v];
      }
    });
    finish_sums(sum, r, acc);
  }
}

// stream += sum over rows [row, row + N) of weight * target row, for every unit: the transposed product, without a
// transposed index. The rows of dY stay in registers over the units of a block row.
template <int N, int V, bool kColumn>
void block_scatter(const BlockPanel& panel, float* source, const float* rows, int64_t target_pitch, int64_t row) {
  const BlockPanel p = panel;
  const int64_t width = kColumn ? 1 : p.width;
  for (int64_t b = 0; b < p.block_rows; ++b) {
    const float* target = rows + (b * p.height + row) * target_pitch;
    Vec t[N][V];
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < V; ++v) t[i][v] = load(target + i * target_pitch + v * kWidth);
    for_each_unit<kColumn>(p, b, row, [&](int64_t u, const float* weight) {
      float* s = source + p.offset[u] * p.pitch;
      Vec acc[V];
      for (int v = 0; v < V; ++v) acc[v] = load(s + v * kWidth);
      for (int i = 0; i < N; ++i) {
        const Vec w = broadcast(weight[i * width]);
        for (int v = 0; v < V; ++v) acc[v] += w * t[i][v];
      }
      for (int v = 0; v < V; ++v) store(s + v * kWidth, acc[v]);
    });
  }
}

struct BlockDot {
  const float* source;
  const float* target;  // rows target_pitch floats apart
  int64_t target_pitch;
  int64_t length;  // floats of a run, a multiple of kWidth
  int64_t runs;    // consecutive runs are source_run and target_run floats apart
  int64_t source_run, target_run;
  float* result;  // [blocks, height, width]
};

// result += <target rows [row, row + N), stream> for every unit, U units sharing each load of a row.
template <int N, int U>
inline void block_dot_units(const BlockPanel& p, const BlockDot& d, const float* target, int64_t u, int64_t row) {
  const float* s[U];
  for (int j = 0; j < U; ++j) s[j] = d.source + p.offset[u + j] * p.pitch;
  Vec acc[U][4] = {};
  for (int64_t run = 0; run < d.runs; ++run) {
    const float* t = target + run * d.target_run;
    const int64_t first = run * d.source_run;
    for (int64_t q = 0; q < d.length; q += kWidth) {
      Vec x[U];
      for (int j = 0; j < U; ++j) x[j] = load(s[j] + first + q);
      for (int i = 0; i < N; ++i) {
        const Vec y = load(t + i * d.target_pitch + q);
        for (int j = 0; j < U; ++j) acc[j][i] += y * x[j];
      }
    }
  }
  for (int j = 0; j < U; ++j) {
    const Quad sums = sum_each(acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
    float* result = d.result + (u + j) / p.width * p.height * p.width + row * p.width + (u + j) % p.width;
    if (N == 4 && p.width == 1)
      *reinterpret_cast<QuadUnaligned*>(result) += sums;
    else
      for (int i = 0; i < N; ++i) result[i * p.width] += sums[i];
  }
}

template <int N>
void block_dot(const BlockPanel& panel, const BlockDot& dot, int64_t row) {
  const BlockPanel p = panel;
  const BlockDot d = dot;
  for (int64_t b = 0; b < p.block_rows; ++b) {
    const float* target = d.target + (b * p.height + row) * d.target_pitch;
    int64_t u = p.units.begin[b];
    const int64_t end = p.units.end[b];
    for (; u + 2 <= end; u += 2) block_dot_units<N, 2>(p, d, target, u, row);
    if (u < end) block_dot_units<N, 1>(p, d, target, u, row);
  }
}

// Calls body(row, integral constant N) so that the rows of a block are covered by runs of four, then two, then one.
template <typename Body>
inline void for_rows(int64_t height, Body body) {
  int64_t row = 0;
  for (; row + 4 <= height; row += 4) body(row, std::integral_constant<int, 4>{});
  if (height - row >= 2) body(row, std::integral_constant<int, 2>{}), row += 2;
  if (row < height) body(row, std::integral_constant<int, 1>{});
}

// Calls body(integral constant V, bool constant) for strips of `vectors` vectors, 1 <= vectors <= kBlockVectors.
template <typename Body>
inline void with_shape(int64_t vectors, int64_t width, Body body) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, kBlockVectors>;
  if (width == 1)
    vectors == 1 ? body(One{}, std::true_type{}) : body(Two{}, std::true_type{});
  else
    vectors == 1 ? body(One{}, std::false_type{}) : body(Two{}, std::false_type{});
}

inline void block_axpy_panel(int64_t vectors, const BlockPanel& p, const float* source, const Sum& sum) {
  with_shape(vectors, p.width, [&](auto v, auto column) {
    for_rows(p.height, [&](int64_t row, auto n) { block_axpy<n(), v(), column()>(p, source, sum, row); });
  });
}

inline void block_scatter_panel(int64_t vectors, const BlockPanel& p, float* source, const float* rows,
                                int64_t target_pitch) {
  with_shape(vectors, p.width, [&](auto v, auto column) {
    for_rows(p.height,
             [&](int64_t row, auto n) { block_scatter<n(), v(), column()>(p, source, rows, target_pitch, row); });
  });
}

inline void block_dot_panel(const BlockPanel& p, const BlockDot& dot) {
  for_rows(p.height, [&](int64_t row, auto n) { block_dot<n()>(p, dot, row); });
}

}  // namespace spfde::cpu::SPFDE_ISA
