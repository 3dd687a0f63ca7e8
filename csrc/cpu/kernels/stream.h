// The two inner loops every op is made of, over all rows of one panel.
//
// A *stream* is a run of consecutive floats (batch lanes of one input feature, or of a run of output positions of one
// input plane); a stored weight selects the stream at source + offset * pitch. A *panel* is a range of streams small
// enough to stay close to the core while every row uses it.
#pragma once

#include <type_traits>

#include "simd.h"

namespace spfde::cpu::SPFDE_ISA {

constexpr int kStreamVectors = 8;  // accumulators of a full strip; enough chains to hide the latency of an FMA
constexpr int kStrip = kStreamVectors * kWidth;
constexpr int kRunVectors = kStreamVectors / 2;  // of each run, where a strip is of two runs

// Calls body(integral constant V) for strips of `vectors` vectors, 1 <= vectors <= kStreamVectors.
template <typename Body>
inline void with_vectors(int64_t vectors, Body body) {
  switch (vectors) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    default:
      return body(std::integral_constant<int, 8>{});
  }
}

// Calls body(integral constants R, V) for strips of one run, or of two runs of at most kRunVectors vectors each.
template <typename Body>
inline void with_strip(int64_t runs, int64_t vectors, Body body) {
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  if (runs == 1) return with_vectors(vectors, [&](auto v) { body(kOne, v); });
  switch (vectors) {
    case 1:
      return body(kTwo, std::integral_constant<int, 1>{});
    case 2:
      return body(kTwo, std::integral_constant<int, 2>{});
    case 3:
      return body(kTwo, std::integral_constant<int, 3>{});
    default:
      return body(kTwo, std::integral_constant<int, kRunVectors>{});
  }
}

// Which stored weights of each row lie in a panel.
struct Segments {
  const int32_t* begin;  // [rows]
  const int32_t* end;    // [rows]
};

// Rows of sums on their way through the panels.
struct Sum {
  const float* from;  // rows from_pitch floats apart; nullptr: this panel starts the sum, from the bias
  int64_t from_pitch;
  float* to;  // rows to_pitch floats apart
  int64_t to_pitch;
  const float* bias;  // [rows] or nullptr
  int64_t rows;       // rows that exist
  int64_t run = 0;    // floats between the runs of a strip
};

struct AxpyPanel {
  int64_t rows;
  Segments weights;
  const float* values;
  const int32_t* offset;
  int64_t pitch;
  const float* source;
  Sum sum;
  int64_t source_run = 0;  // floats between the runs of a strip
};

// sum.to[r] = sum.from[r] (or bias[r]) + sum over the row's weights of value * stream, in a strip of R runs of V
// vectors.
template <int R, int V>
void axpy_panel(const AxpyPanel& panel) {
  constexpr int N = R * V, kChains = N <= 2 ? 4 : N <= 4 ? 2 : 1;  // weights in flight: short strips need chains enough
  const AxpyPanel a = panel;
  const auto add = [&](Vec(&acc)[N], int64_t k) __attribute__((always_inline)) {
    const Vec w = broadcast(a.values[k]);
    const float* s = a.source + a.offset[k] * a.pitch;
    for (int i = 0; i < N; ++i) acc[i] += w * load(s + i / V * a.source_run + i % V * kWidth);
  };
  for (int64_t r = 0; r < a.rows; ++r) {
    int64_t k = a.weights.begin[r];
    const int64_t end = a.weights.end[r];
    if (k == end && a.sum.from == a.sum.to) continue;
    const float* from = a.sum.from ? a.sum.from + r * a.sum.from_pitch : nullptr;
    Vec acc[kChains][N];
    for (int i = 0; i < N; ++i)
      acc[0][i] = from         ? load(from + i / V * a.sum.run + i % V * kWidth)
                  : a.sum.bias ? broadcast(a.sum.bias[r])
                               : Vec{};
    for (int c = 1; c < kChains; ++c)
      for (int i = 0; i < N; ++i) acc[c][i] = Vec{};
    for (; k + kChains <= end; k += kChains)
      for (int c = 0; c < kChains; ++c) add(acc[c], k + c);
    for (; k < end; ++k) add(acc[0], k);
    for (int c = 1; c < kChains; ++c)
      for (int i = 0; i < N; ++i) acc[0][i] += acc[c][i];
    float* to = a.sum.to + r * a.sum.to_pitch;
    for (int i = 0; i < N; ++i) store(to + i / V * a.sum.run + i % V * kWidth, acc[0][i]);
  }
}

// The loop above for strips of `runs` runs of `vectors` vectors each (see with_strip).
inline void axpy_panel(int64_t runs, int64_t vectors, const AxpyPanel& panel) {
  with_strip(runs, vectors, [&](auto r, auto v) { axpy_panel<r(), v()>(panel); });
}

struct DotPanel {
  int64_t rows;
  Segments weights;
  const int32_t* offset;
  int64_t pitch;
  const float* source;
  const float* target;  // rows target_pitch floats apart
  int64_t target_pitch;
  int64_t length;  // floats of a run, a multiple of kWidth
  int64_t runs;    // consecutive runs are source_run and target_run floats apart
  int64_t source_run, target_run;
  float* result;  // one per stored weight
};

// result[g] += the dot products of `target` with eight streams, which share every load of it; `count` of them are
// real, the others repeat the first.
inline void dot_eight(const DotPanel& d, const float* target, const int32_t* offset, int64_t count, float* result) {
  const float* s[8];
  for (int g = 0; g < 8; ++g) s[g] = d.source + offset[g < count ? g : 0] * d.pitch;
  Vec a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{};
  for (int64_t run = 0; run < d.runs; ++run, target += d.target_run) {
    const int64_t first = run * d.source_run;
    for (int64_t p = 0; p < d.length; p += kWidth) {
      const Vec t = load(target + p);
      a0 += t * load(s[0] + first + p);
      a1 += t * load(s[1] + first + p);
      a2 += t * load(s[2] + first + p);
      a3 += t * load(s[3] + first + p);
      a4 += t * load(s[4] + first + p);
      a5 += t * load(s[5] + first + p);
      a6 += t * load(s[6] + first + p);
      a7 += t * load(s[7] + first + p);
    }
  }
  const Quad low = sum_each(a0, a1, a2, a3), high = sum_each(a4, a5, a6, a7);
  if (count == 8) {
    *reinterpret_cast<QuadUnaligned*>(result) += low;
    *reinterpret_cast<QuadUnaligned*>(result + 4) += high;
  } else {
    for (int64_t g = 0; g < 4; ++g) result[g] += low[g];
    for (int64_t g = 4; g < count; ++g) result[g] += high[g - 4];
  }
}

// The same for at most four streams, two vectors at a time.
inline void dot_four(const DotPanel& d, const float* target, const int32_t* offset, int64_t count, float* result) {
  const float* s[4];
  for (int g = 0; g < 4; ++g) s[g] = d.source + offset[g < count ? g : 0] * d.pitch;
  Vec a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  for (int64_t run = 0; run < d.runs; ++run, target += d.target_run) {
    const int64_t first = run * d.source_run;
    int64_t p = 0;
    for (; p + 2 * kWidth <= d.length; p += 2 * kWidth) {
      const Vec t = load(target + p), u = load(target + p + kWidth);
      a0 += t * load(s[0] + first + p);
      a1 += t * load(s[1] + first + p);
      a2 += t * load(s[2] + first + p);
      a3 += t * load(s[3] + first + p);
      b0 += u * load(s[0] + first + p + kWidth);
      b1 += u * load(s[1] + first + p + kWidth);
      b2 += u * load(s[2] + first + p + kWidth);
      b3 += u * load(s[3] + first + p + kWidth);
    }
    if (p < d.length) {
      const Vec t = load(target + p);
      a0 += t * load(s[0] + first + p);
      a1 += t * load(s[1] + first + p);
      a2 += t * load(s[2] + first + p);
      a3 += t * load(s[3] + first + p);
    }
  }
  const Quad sums = sum_each(a0 + b0, a1 + b1, a2 + b2, a3 + b3);
  for (int64_t g = 0; g < count; ++g) result[g] += sums[g];
}

// result[k] += dot(target[r], stream k) for the weights k of every row r.
inline void dot_panel(const DotPanel& panel) {
  const DotPanel d = panel;
  for (int64_t r = 0; r < d.rows; ++r) {
    int64_t k = d.weights.begin[r];
    const int64_t end = d.weights.end[r];
    const float* target = d.target + r * d.target_pitch;
    for (; k + 8 <= end; k += 8) dot_eight(d, target, d.offset + k, 8, d.result + k);
    if (end - k > 4)
      dot_eight(d, target, d.offset + k, end - k, d.result + k);
    else if (end > k)
      dot_four(d, target, d.offset + k, end - k, d.result + k);
  }
}

// acc[g] = the dot products of a target that is in registers with G streams.
template <int R, int V, int G>
[[gnu::always_inline]] inline void dot_kept(const DotPanel& d, const Vec (&target)[R * V], const int32_t* offset,
                                            Vec (&acc)[4]) {
  const float* s[G];
  for (int g = 0; g < G; ++g) s[g] = d.source + offset[g] * d.pitch;
  for (int i = 0; i < R * V; ++i)
    for (int g = 0; g < G; ++g) {
      const Vec stream = load(s[g] + i / V * d.source_run + i % V * kWidth);
      acc[g] = i ? acc[g] + target[i] * stream : target[i] * stream;
    }
}

// result[k] += dot(target[r], stream k) for the weights k of every row r, whose target of R runs of V vectors is loaded
// once and kept.
template <int R, int V>
void dot_strip(const DotPanel& panel) {
  const DotPanel d = panel;
  for (int64_t r = 0; r < d.rows; ++r) {
    int64_t k = d.weights.begin[r];
    const int64_t end = d.weights.end[r];
    if (k == end) continue;
    const float* row = d.target + r * d.target_pitch;
    Vec target[R * V];
    for (int i = 0; i < R * V; ++i) target[i] = load(row + i / V * d.target_run + i % V * kWidth);
    for (; k + 4 <= end; k += 4) {
      Vec acc[4];
      dot_kept<R, V, 4>(d, target, d.offset + k, acc);
      store_quad(d.result + k, load_quad(d.result + k) + sum_each(acc[0], acc[1], acc[2], acc[3]));
    }
    Vec acc[4] = {};
    switch (end - k) {
      case 1:
        dot_kept<R, V, 1>(d, target, d.offset + k, acc);
        break;
      case 2:
        dot_kept<R, V, 2>(d, target, d.offset + k, acc);
        break;
      case 3:
        dot_kept<R, V, 3>(d, target, d.offset + k, acc);
        break;
      default:
        continue;
    }
    const Quad sums = sum_each(acc[0], acc[1], acc[2], acc[3]);
    for (int g = 0; k < end; ++k, ++g) d.result[k] += sums[g];
  }
}

// The loop above for strips of d.runs runs of d.length floats each (see with_strip).
inline void dot_strip(const DotPanel& d) {
  with_strip(d.runs, d.length / kWidth, [&](auto r, auto v) { dot_strip<r(), v()>(d); });
}

// Bytes of a panel: an L1 cache, or up to `far` (so L2) where a row has so few weights that a visit to it would cost
// more than the weights it finds there.
struct PanelBytes {
  int64_t near = 32 * 1024, far = 128 * 1024;
};

// Streams in a panel, each occupying `bytes`.
inline int64_t panel_streams(int64_t bytes, double density, PanelBytes panel = {}) {
  constexpr double kWorthVisiting = 15;
  int64_t size = panel.near;
  while (size < panel.far && size / bytes * density < kWorthVisiting) size = min(panel.far, 2 * size);
  return max(1, size / bytes);
}

// segment[p * rows + r] = first stored weight of row r with col >= p * width - shift, for p in [0, panels]: where each
// panel of `width` columns begins in every row. Looked for where evenly spread weights of a row of `cols` would put it.
inline void split_row(const int32_t* row_ptr, const int32_t* col, int64_t rows, int64_t r, int64_t cols, int64_t panels,
                      int64_t width, int64_t shift, int32_t* segment) {
  const int32_t begin = row_ptr[r], end = row_ptr[r + 1];
  const double spread = static_cast<double>(end - begin) / max(1, cols);
  segment[r] = begin;
  for (int64_t p = 1; p < panels; ++p) {
    const int64_t limit = p * width - shift;
    const int32_t least = segment[(p - 1) * rows + r];
    int32_t k = static_cast<int32_t>(max(least, min(end, begin + static_cast<int64_t>(limit * spread))));
    while (k > least && col[k - 1] >= limit) --k;
    while (k < end && col[k] < limit) ++k;
    segment[p * rows + r] = k;
  }
  segment[panels * rows + r] = end;
}

}  // namespace spfde::cpu::SPFDE_ISA
