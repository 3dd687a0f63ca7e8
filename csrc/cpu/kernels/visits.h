// The two inner loops of stream.h over the visits of a panel (see spfde/panel_order.h): a visit takes the weights of
// one row, as many as were counted before, four at a time.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "simd.h"
#include "spfde/panel_order.h"
#include "stream.h"

namespace spfde::cpu::SPFDE_ISA {

// p[0 : 4] in every 128-bit lane: one load for four weights.
inline Vec load_quad_each(const float* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p));  // GCC 12 warns of itself in the form without a mask
#elif defined(__AVX2__)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load_quad(p);
#endif
}

// Element K of each 128-bit lane, all over the lane.
template <int K>
inline Vec splat(Vec v) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(v, v, K, K, K, K, K + 4, K + 4, K + 4, K + 4, K + 8, K + 8, K + 8, K + 8, K + 12, K + 12, K + 12,
                       K + 12);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(v, v, K, K, K, K, K + 4, K + 4, K + 4, K + 4);
#else
  return SPFDE_SHUFFLE(v, v, K, K, K, K);
#endif
}

// Those of a share's panel.
struct Visits {
  const int32_t* visit;
  int64_t count;
  int64_t first;  // weight of the first one: what belongs to weights begins there, as `offset` does
  const int16_t* offset;
};

inline int64_t visit_row(int32_t visit) { return static_cast<uint32_t>(visit) & 0xffff; }
inline int64_t visit_weights(int32_t visit) { return static_cast<uint32_t>(visit) >> 16; }

inline Visits visits_of(const PanelOrder& o, int64_t rows, int64_t share, int64_t panel) {
  const int64_t begin = share * o.cut.share, count = min(rows, begin + o.cut.share) - begin;
  const int64_t first = o.start[share * o.cut.panels + panel];
  return {o.visits + begin * o.cut.panels + panel * count, count, first, o.offset + first};
}

// Calls body(visit, end of visits, weights) for every run of visits with as many weights each.
template <typename Body>
inline void for_each_length(const Visits& v, Body body) {
  for (int64_t i = 0; i < v.count;) {
    const int64_t weights = visit_weights(v.visit[i]);
    int64_t end = i + 1;
    while (end < v.count && visit_weights(v.visit[end]) == weights) ++end;
    body(i, end, weights);
    i = end;
  }
}

// Calls body(integral constant weights % 4).
template <typename Body>
inline void with_rest(int64_t weights, Body body) {
  switch (weights % 4) {
    case 0:
      return body(std::integral_constant<int, 0>{});
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    default:
      return body(std::integral_constant<int, 3>{});
  }
}

// Rows come in no order that a prefetcher could follow: the one after the next of visit i is asked for by hand.
template <int V, int kWrite>
inline void prefetch_row(const Visits& v, int64_t i, const float* rows, int64_t pitch) {
  const float* ahead = rows + visit_row(v.visit[min(i + 2, v.count - 1)]) * pitch;
  for (int q = 0; q < V * kWidth; q += 16) __builtin_prefetch(ahead + q, kWrite, 3);
}

struct AxpyVisits {
  Visits visits;
  const float* values;  // in the visits' order, from `visits.first`
  const float* source;  // the panel's first stream
  int64_t pitch;        // floats between streams
  Sum sum;
};

// Visits [i, end) of 4 * quads + R weights each, which begin at `values` and `offset`. A function of its own and
// pointers by value, so that all of it stays in registers.
template <int V, int R>
[[gnu::noinline]] void axpy_visits(const AxpyVisits& visits, int64_t i, int64_t end, int64_t quads, const float* values,
                                   const int16_t* offset) {
  const AxpyVisits a = visits;
  for (; i < end; ++i) {
    const int64_t r = visit_row(a.visits.visit[i]);
    prefetch_row<V, 1>(a.visits, i, a.sum.to, a.sum.to_pitch);
    Vec acc[V];
    if (a.sum.from)
      for (int v = 0; v < V; ++v) acc[v] = load(a.sum.from + r * a.sum.from_pitch + v * kWidth);
    else
      for (int v = 0; v < V; ++v) acc[v] = a.sum.bias ? broadcast(a.sum.bias[r]) : Vec{};
    const auto add = [&](int64_t k, Vec w) __attribute__((always_inline)) {
      const float* s = a.source + static_cast<uint16_t>(offset[k]) * a.pitch;
      for (int v = 0; v < V; ++v) acc[v] += w * load(s + v * kWidth);
    };
    for (int64_t q = 0; q < quads; ++q, values += 4, offset += 4) {
      const Vec four = load_quad_each(values);
      add(0, splat<0>(four));
      add(1, splat<1>(four));
      add(2, splat<2>(four));
      add(3, splat<3>(four));
    }
    for (int64_t k = 0; k < R; ++k) add(k, broadcast(values[k]));
    values += R;
    offset += R;
    float* to = a.sum.to + r * a.sum.to_pitch;
    for (int v = 0; v < V; ++v) store(to + v * kWidth, acc[v]);
  }
}

// sum.to[r, 0 : V * kWidth] = sum.from[r] (or bias[r]) + the sum over the row's weights of value * stream.
template <int V>
void axpy_visits(const AxpyVisits& a) {
  int64_t k = 0;
  for_each_length(a.visits, [&](int64_t i, int64_t end, int64_t weights) {
    if (weights == 0 && a.sum.from == a.sum.to) return;
    with_rest(weights,
              [&](auto rest) { axpy_visits<V, rest()>(a, i, end, weights / 4, a.values + k, a.visits.offset + k); });
    k += (end - i) * weights;
  });
}

inline void axpy_visits(int64_t vectors, const AxpyVisits& visits) {
  with_vectors(vectors, [&](auto v) { axpy_visits<v()>(visits); });
}

struct DotVisits {
  Visits visits;
  const float* source;  // the panel's first stream
  int64_t pitch;        // floats between streams
  const float* target;  // rows target_pitch floats apart
  int64_t target_pitch;
  float* result;  // in the visits' order, from `visits.first`
  bool fresh;     // what stands in `result` is written over
};

// Visits [i, end) of 4 * quads + R weights each, which begin at `result` and `offset`.
template <int V, int R>
[[gnu::noinline]] void dot_visits(const DotVisits& visits, int64_t i, int64_t end, int64_t quads, float* result,
                                  const int16_t* offset) {
  const DotVisits d = visits;
  for (; i < end; ++i) {
    prefetch_row<V, 0>(d.visits, i, d.target, d.target_pitch);
    const float* target = d.target + visit_row(d.visits.visit[i]) * d.target_pitch;
    Vec t[V];
    for (int v = 0; v < V; ++v) t[v] = load(target + v * kWidth);
    const auto dot = [&](int64_t k) __attribute__((always_inline)) {
      const float* s = d.source + static_cast<uint16_t>(offset[k]) * d.pitch;
      Vec acc = t[0] * load(s);
      for (int v = 1; v < V; ++v) acc += t[v] * load(s + v * kWidth);
      return acc;
    };
    for (int64_t q = 0; q < quads; ++q, result += 4, offset += 4) {
      const Quad sums = sum_each(dot(0), dot(1), dot(2), dot(3));
      store_quad(result, d.fresh ? sums : sums + load_quad(result));
    }
    if constexpr (R > 0) {
      const Quad sums = sum_each(dot(0), R > 1 ? dot(1) : Vec{}, R > 2 ? dot(2) : Vec{}, Vec{});
      for (int k = 0; k < R; ++k) result[k] = d.fresh ? sums[k] : result[k] + sums[k];
      result += R;
      offset += R;
    }
  }
}

// result[k] (+)= <target row, stream k> for the weights k of every visit; the row stays in registers.
template <int V>
void dot_visits(const DotVisits& d) {
  int64_t k = 0;
  for_each_length(d.visits, [&](int64_t i, int64_t end, int64_t weights) {
    if (weights == 0) return;
    with_rest(weights,
              [&](auto rest) { dot_visits<V, rest()>(d, i, end, weights / 4, d.result + k, d.visits.offset + k); });
    k += (end - i) * weights;
  });
}

inline void dot_visits(int64_t vectors, const DotVisits& visits) {
  with_vectors(vectors, [&](auto v) { dot_visits<v()>(visits); });
}

}  // namespace spfde::cpu::SPFDE_ISA
