// The two inner loops every op is made of.
//
// A *stream* is a run of consecutive floats (batch lanes of one input feature, or output positions of one input
// plane); a stored weight selects the stream at source + offset * pitch.
#pragma once

#include "simd.h"

namespace spfde::SPFDE_ISA {

constexpr int kStreamVectors = 8;  // accumulators of a full strip; enough chains to hide the latency of an FMA
constexpr int kStrip = kStreamVectors * kWidth;
constexpr int kPanelBytes = 24 * 1024;  // source bytes that stay in L1 while all rows use them

// target[0 : V * kWidth] (=, if first, bias; else +=) sum_k values[k] * (source + offset[k] * pitch)[0 : V * kWidth]
template <int V>
inline void axpy_streams(const float* values, const int32_t* offset, int64_t n, int64_t pitch, const float* source,
                         bool first, float bias, float* target) {
  Vec acc[V];
  for (int i = 0; i < V; ++i) acc[i] = first ? broadcast(bias) : load(target + i * kWidth);
  for (int64_t k = 0; k < n; ++k) {
    const Vec w = broadcast(values[k]);
    const float* s = source + offset[k] * pitch;
    for (int i = 0; i < V; ++i) acc[i] += w * load(s + i * kWidth);
  }
  for (int i = 0; i < V; ++i) store(target + i * kWidth, acc[i]);
}

using AxpyStreams = void (*)(const float*, const int32_t*, int64_t, int64_t, const float*, bool, float, float*);

// The loop above for a strip of `vectors` vectors, 1 <= vectors <= kStreamVectors.
inline AxpyStreams axpy_streams_for(int64_t vectors) {
  switch (vectors) {
    case 1:
      return axpy_streams<1>;
    case 2:
      return axpy_streams<2>;
    case 3:
      return axpy_streams<3>;
    case 4:
      return axpy_streams<4>;
    case 5:
      return axpy_streams<5>;
    case 6:
      return axpy_streams<6>;
    case 7:
      return axpy_streams<7>;
    default:
      return axpy_streams<8>;
  }
}

// result[g] += dot(target, source + offset[g] * pitch) over `length` floats (a multiple of kWidth), g < G <= kWidth.
template <int G>
inline void dot_group(const float* target, const int32_t* offset, int64_t count, int64_t pitch, const float* source,
                      int64_t length, float* result) {
  const float* s[G];
  for (int g = 0; g < G; ++g) s[g] = source + offset[g < count ? g : count - 1] * pitch;
  Vec acc[G] = {};
  for (int64_t p = 0; p < length; p += kWidth) {
    const Vec t = load(target + p);
    for (int g = 0; g < G; ++g) acc[g] += t * load(s[g] + p);
  }
  Vec all[kWidth] = {};
  for (int g = 0; g < G; ++g) all[g] = acc[g];
  const Vec sums = sum_each(all);
  for (int64_t g = 0; g < count; ++g) result[g] += sums[g];
}

// result[k] += dot(target, source + offset[k] * pitch) for k < n: many weights share each load of the target.
inline void dot_streams(const float* target, const int32_t* offset, int64_t n, int64_t pitch, const float* source,
                        int64_t length, float* result) {
  constexpr int kGroup = kWidth < 8 ? kWidth : 8;
  int64_t k = 0;
  for (; k + kGroup <= n; k += kGroup) dot_group<kGroup>(target, offset + k, kGroup, pitch, source, length, result + k);
  const int64_t rest = n - k;
  if (rest > kGroup / 2)
    dot_group<kGroup>(target, offset + k, rest, pitch, source, length, result + k);
  else if (rest > 0)
    dot_group<kGroup / 2>(target, offset + k, rest, pitch, source, length, result + k);
}

// segment[p * rows + r] = first stored weight of row r with col >= p * width - shift, for p in [0, panels]: where each
// panel of `width` columns begins in every row.
inline void split_row(const int32_t* row_ptr, const int32_t* col, int64_t rows, int64_t r, int64_t panels,
                      int64_t width, int64_t shift, int32_t* segment) {
  int32_t k = row_ptr[r];
  const int32_t end = row_ptr[r + 1];
  segment[r] = k;
  for (int64_t p = 1; p < panels; ++p) {
    const int64_t limit = p * width - shift;
    while (k < end && col[k] < limit) ++k;
    segment[p * rows + r] = k;
  }
  segment[panels * rows + r] = end;
}

}  // namespace spfde::SPFDE_ISA
