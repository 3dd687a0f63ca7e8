// The inner loops of stream_blocks.h over the visits of a panel (see spfde/panel_order.h): a visit takes the units of
// one block row, as many as were counted before. Values lie in the order of the visits, [unit][height].
#pragma once

#include "stream_blocks.h"
#include "visits.h"

namespace spfde::cpu::SPFDE_ISA {

struct BlockVisits {
  Visits visits;
  int64_t height;
  int64_t pitch;  // floats between streams, and between target rows
};

// body(i, w) with w all over the weight of row i of a unit, for rows [0, N) of it.
template <int N, typename Body>
inline void for_each_row(const float* weights, Body body) {
  if constexpr (N == 4) {
    const Vec four = load_quad_each(weights);
    body(0, splat<0>(four));
    body(1, splat<1>(four));
    body(2, splat<2>(four));
    body(3, splat<3>(four));
  } else {
    for (int i = 0; i < N; ++i) body(i, broadcast(weights[i]));
  }
}

// sum.to = sum.from (or bias) + sum over units of weight * stream, for rows [row, row + N) of every block row.
template <int N, int V>
void block_axpy_visits(const BlockVisits& b, const float* values, const float* source, const Sum& given, int64_t row) {
  const Sum sum = given;
  const int64_t height = b.height, pitch = b.pitch;
  const int16_t* offset = b.visits.offset;
  values += row;
  for_each_length(b.visits, [&](int64_t visit, int64_t end, int64_t units) {
    if (units == 0 && sum.from == sum.to) return;
    for (; visit < end; ++visit) {
      const int64_t r = visit_row(b.visits.visit[visit]) * height + row;
      Vec acc[N][V];
      start_sums(sum, r, acc);
      for (int64_t u = 0; u < units; ++u, values += height) {
        const float* s = source + static_cast<uint16_t>(*offset++) * pitch;
        Vec x[V];
        for (int v = 0; v < V; ++v) x[v] = load(s + v * kWidth);
        for_each_row<N>(values, [&](int i, Vec w) {
          for (int v = 0; v < V; ++v) acc[i][v] += w * x[v];
        });
      }
      finish_sums(sum, r, acc);
    }
  });
}

// stream += sum over rows [row, row + N) of weight * target row, for every unit: the transposed product, without a
// transposed index. The rows of dY stay in registers over the units of a block row.
template <int N, int V>
void block_scatter_visits(const BlockVisits& b, const float* values, float* source, const float* rows, int64_t row) {
  const int64_t height = b.height, pitch = b.pitch;
  const int16_t* offset = b.visits.offset;
  values += row;
  for_each_length(b.visits, [&](int64_t visit, int64_t end, int64_t units) {
    for (; units > 0 && visit < end; ++visit) {
      const float* target = rows + (visit_row(b.visits.visit[visit]) * height + row) * pitch;
      Vec t[N][V];
      for (int i = 0; i < N; ++i)
        for (int v = 0; v < V; ++v) t[i][v] = load(target + i * pitch + v * kWidth);
      for (int64_t u = 0; u < units; ++u, values += height) {
        float* s = source + static_cast<uint16_t>(*offset++) * pitch;
        Vec acc[V];
        for (int v = 0; v < V; ++v) acc[v] = load(s + v * kWidth);
        for_each_row<N>(values, [&](int i, Vec w) {
          for (int v = 0; v < V; ++v) acc[v] += w * t[i][v];
        });
        for (int v = 0; v < V; ++v) store(s + v * kWidth, acc[v]);
      }
    }
  });
}

// result[unit] (+)= <target rows [0, N), stream> for U units that share each load of a row.
template <int N, int U>
inline void block_dot_units(const float* source, const int16_t* offset, int64_t pitch, int64_t length,
                            const float* target, bool fresh, float* result, int64_t height) {
  const float* s[U];
  for (int j = 0; j < U; ++j) s[j] = source + static_cast<uint16_t>(offset[j]) * pitch;
  Vec acc[U][4] = {};
  for (int64_t q = 0; q < length; q += kWidth) {
    Vec x[U];
    for (int j = 0; j < U; ++j) x[j] = load(s[j] + q);
    for (int i = 0; i < N; ++i) {
      const Vec y = load(target + i * pitch + q);
      for (int j = 0; j < U; ++j) acc[j][i] += y * x[j];
    }
  }
  for (int j = 0; j < U; ++j, result += height) {
    const Quad sums = sum_each(acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
    if (N == 4)
      store_quad(result, fresh ? sums : sums + load_quad(result));
    else
      for (int i = 0; i < N; ++i) result[i] = fresh ? sums[i] : result[i] + sums[i];
  }
}

// The same for every unit, over `length` floats (a multiple of kWidth), for rows [row, row + N) of every block row.
template <int N>
void block_dot_visits(const BlockVisits& b, const float* source, const float* rows, int64_t length, bool fresh,
                      float* result, int64_t row) {
  const int64_t height = b.height, pitch = b.pitch;
  const int16_t* offset = b.visits.offset;
  result += row;
  for_each_length(b.visits, [&](int64_t visit, int64_t end, int64_t units) {
    for (; units > 0 && visit < end; ++visit) {
      const float* target = rows + (visit_row(b.visits.visit[visit]) * height + row) * pitch;
      int64_t u = 0;
      for (; u + 2 <= units; u += 2, offset += 2, result += 2 * height)
        block_dot_units<N, 2>(source, offset, pitch, length, target, fresh, result, height);
      if (u < units) {
        block_dot_units<N, 1>(source, offset, pitch, length, target, fresh, result, height);
        offset += 1, result += height;
      }
    }
  });
}

}  // namespace spfde::cpu::SPFDE_ISA
