// The copies of the joined layout (see planes.h): rows of images into zero-padded planes, and back.
#pragma once

#include "planes.h"

namespace spfde::SPFDE_ISA {

// Distances in floats between pixels of a row, and between channels.
struct Strides {
  int64_t pixel, channel;
};
inline Strides strides(int64_t channels, int64_t pixels, bool channels_last) {
  return channels_last ? Strides{channels, 1} : Strides{1, pixels};
}

// Elements [begin, end) of a phase that exist, given the index of element 0 and the step.
struct Range {
  int64_t begin, end;
};
inline Range valid_range(int64_t first, int64_t step, int64_t length, int64_t most) {
  const int64_t begin = first >= 0 ? 0 : ceil_div(-first, step);
  const int64_t end = length > first ? min(most, ceil_div(length - first, step)) : 0;
  return {begin, max(begin, end)};
}

// out[u] = x[u * step] for u in r, zero elsewhere in [0, pitch).
inline void join_row(const float* x, int64_t step, Range r, int64_t pitch, float* out) {
  for (int64_t u = 0; u < r.begin; ++u) out[u] = 0.f;
  if (step == 1)
    memcpy(out + r.begin, x + r.begin, (r.end - r.begin) * sizeof(float));
  else
    for (int64_t u = r.begin; u < r.end; ++u) out[u] = x[u * step];
  for (int64_t u = r.end; u < pitch; ++u) out[u] = 0.f;
}

inline void join_source(const Conv2dGeometry& g, const Planes& p, const float* x, bool channels_last, int64_t first,
                        int64_t images, float* out) {
  const int64_t pixels = g.h.source_length * g.w.source_length;
  const Strides by = strides(g.source_channels, pixels, channels_last);
  for (int64_t c = 0; c < g.source_channels; ++c)
    for (int64_t ph = 0; ph < g.h.source_phases; ++ph)
      for (int64_t pw = 0; pw < g.w.source_phases; ++pw) {
        const int64_t slot = g.slot[ph * g.w.source_phases + pw];
        if (slot < 0) continue;
        const int64_t h_first = g.h.source_first[ph], w_first = g.w.source_first[pw];
        const Range h = valid_range(h_first, g.h.source_step, g.h.source_length, g.h.pitch);
        const Range w = valid_range(w_first, g.w.source_step, g.w.source_length, g.w.pitch);
        float* plane = out + c * p.channel_stride + slot * p.plane_stride;
        float* row = plane;
        for (int64_t n = 0; n < images; ++n) {
          const float* image = x + (first + n) * g.source_channels * pixels + c * by.channel;
          for (int64_t u = 0; u < g.h.pitch; ++u, row += g.w.pitch)
            if (u >= h.begin && u < h.end)
              join_row(image + ((h_first + u * g.h.source_step) * g.w.source_length + w_first) * by.pixel,
                       g.w.source_step * by.pixel, w, g.w.pitch, row);
            else
              memset(row, 0, g.w.pitch * sizeof(float));
        }
        memset(row, 0, (plane + p.plane_stride - row) * sizeof(float));
      }
}

// The way back: channels [begin, end) of dX from the planes; pixels that no tap reads are 0.
inline void part_source(const Conv2dGeometry& g, const Planes& p, const float* planes, int64_t begin, int64_t end,
                        bool channels_last, int64_t first, int64_t images, float* dx) {
  const int64_t pixels = g.h.source_length * g.w.source_length;
  const Strides by = strides(g.source_channels, pixels, channels_last);
  const int64_t step = g.w.source_step * by.pixel;
  for (int64_t c = begin; c < end; ++c)
    for (int64_t n = 0; n < images; ++n) {
      float* image = dx + (first + n) * g.source_channels * pixels + c * by.channel;
      for (int64_t i = 0; i < pixels; ++i) image[i * by.pixel] = 0.f;
      for (int64_t ph = 0; ph < g.h.source_phases; ++ph)
        for (int64_t pw = 0; pw < g.w.source_phases; ++pw) {
          const int64_t slot = g.slot[ph * g.w.source_phases + pw];
          if (slot < 0) continue;
          const int64_t h_first = g.h.source_first[ph], w_first = g.w.source_first[pw];
          const Range h = valid_range(h_first, g.h.source_step, g.h.source_length, g.h.pitch);
          const Range w = valid_range(w_first, g.w.source_step, g.w.source_length, g.w.pitch);
          const float* plane = planes + c * p.channel_stride + slot * p.plane_stride + n * g.h.pitch * g.w.pitch;
          for (int64_t u = h.begin; u < h.end; ++u) {
            float* to = image + ((h_first + u * g.h.source_step) * g.w.source_length + w_first) * by.pixel;
            for (int64_t v = w.begin; v < w.end; ++v) to[v * step] = plane[u * g.w.pitch + v];
          }
        }
    }
}

// Copies channel r of dY into a plane, zero outside the image.
inline void join_target(const Conv2dGeometry& g, const Planes& p, int64_t r, const float* dy, bool channels_last,
                        int64_t first, int64_t images, float* plane) {
  const int64_t pixels = g.h.grid * g.w.grid;
  const Strides by = strides(g.target_channels, pixels, channels_last);
  float* row = plane;
  for (int64_t n = 0; n < images; ++n) {
    const float* image = dy + (first + n) * g.target_channels * pixels + r * by.channel;
    for (int64_t u = 0; u < g.h.pitch; ++u, row += g.w.pitch)
      if (u < g.h.grid)
        join_row(image + u * g.w.grid * by.pixel, by.pixel, {0, g.w.grid}, g.w.pitch, row);
      else
        memset(row, 0, g.w.pitch * sizeof(float));
  }
  memset(row, 0, (plane + p.target_size - row) * sizeof(float));
}

// Copies the plane of row r (channel and phase) into y.
inline void part_target(const Conv2dGeometry& g, int64_t r, const float* plane, bool channels_last, int64_t first,
                        int64_t images, float* y) {
  const int64_t phases = g.h.target_phases * g.w.target_phases, pixels = g.h.target_length * g.w.target_length;
  const int64_t channel = r / phases, phase = r % phases;
  const int64_t h_first = g.h.target_first[phase / g.w.target_phases];
  const int64_t w_first = g.w.target_first[phase % g.w.target_phases];
  const Range h = valid_range(h_first, g.h.target_step, g.h.target_length, g.h.grid);
  const Range w = valid_range(w_first, g.w.target_step, g.w.target_length, g.w.grid);
  const Strides by = strides(g.target_channels, pixels, channels_last);
  const int64_t step = g.w.target_step * by.pixel;
  for (int64_t n = 0; n < images; ++n, plane += g.h.pitch * g.w.pitch) {
    float* image = y + (first + n) * g.target_channels * pixels + channel * by.channel;
    for (int64_t u = h.begin; u < h.end; ++u) {
      const float* from = plane + u * g.w.pitch;
      float* to = image + ((h_first + u * g.h.target_step) * g.w.target_length + w_first) * by.pixel;
      if (step == 1)
        memcpy(to + w.begin, from + w.begin, (w.end - w.begin) * sizeof(float));
      else
        for (int64_t v = w.begin; v < w.end; ++v) to[v * step] = from[v];
    }
  }
}

}  // namespace spfde::SPFDE_ISA
