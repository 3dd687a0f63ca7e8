// Copies between NCHW activations and the padded planes of conv2d_geometry.h.
#pragma once

#include <string.h>

#include "simd.h"
#include "spfde/conv2d_geometry.h"

namespace spfde::SPFDE_ISA {

// Source planes of a chunk of images: [channel][slot][image][row][column], then zeros that the last shifts may read.
struct SourcePlanes {
  int64_t positions;       // of all images, a multiple of kWidth
  int64_t max_shift;       // of any tap
  int64_t plane_stride;    // between the slots of a channel
  int64_t channel_stride;  // between channels
  int64_t size;            // floats in all

  int64_t tap_offset(const Conv2dGeometry& g, int64_t i, int64_t j) const {
    const int64_t slot = g.slot[g.h.source_phase[i] * g.w.source_phases + g.w.source_phase[j]];
    return slot * plane_stride + g.h.shift[i] * g.w.pitch + g.w.shift[j];
  }
};

inline SourcePlanes source_planes(const Conv2dGeometry& g, int64_t images) {
  SourcePlanes p;
  p.positions = round_up(images * g.h.pitch * g.w.pitch, kWidth);
  p.max_shift = g.h.max_shift * g.w.pitch + g.w.max_shift;
  p.plane_stride = round_up(p.positions + p.max_shift, kWidth);
  // Planes a multiple of 4 KiB apart would compete for the same cache sets.
  if (p.plane_stride % 256 == 0) p.plane_stride += 16;
  p.channel_stride = p.plane_stride * g.slots;
  p.size = p.channel_stride * g.source_channels;
  return p;
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

// Plane rows [0, rows) of one image and phase; `stride` and `first` describe the dense row the elements come from.
inline void pack_row(const float* x, int64_t first, int64_t step, Range r, int64_t pitch, float* out) {
  for (int64_t u = 0; u < r.begin; ++u) out[u] = 0.f;
  if (step == 1)
    memcpy(out + r.begin, x + first + r.begin, (r.end - r.begin) * sizeof(float));
  else
    for (int64_t u = r.begin; u < r.end; ++u) out[u] = x[first + u * step];
  for (int64_t u = r.end; u < pitch; ++u) out[u] = 0.f;
}

inline void pack_source(const Conv2dGeometry& g, const SourcePlanes& planes, const float* x, int64_t first_image,
                        int64_t images, float* out) {
  const int64_t image_floats = g.h.source_length * g.w.source_length;
  for (int64_t c = 0; c < g.source_channels; ++c)
    for (int64_t ph = 0; ph < g.h.source_phases; ++ph)
      for (int64_t pw = 0; pw < g.w.source_phases; ++pw) {
        const int64_t slot = g.slot[ph * g.w.source_phases + pw];
        if (slot < 0) continue;
        const int64_t h_first = g.h.source_first[ph], w_first = g.w.source_first[pw];
        const Range h = valid_range(h_first, g.h.source_step, g.h.source_length, g.h.pitch);
        const Range w = valid_range(w_first, g.w.source_step, g.w.source_length, g.w.pitch);
        float* plane = out + c * planes.channel_stride + slot * planes.plane_stride;
        float* row = plane;
        for (int64_t n = 0; n < images; ++n) {
          const float* image = x + ((first_image + n) * g.source_channels + c) * image_floats;
          for (int64_t u = 0; u < g.h.pitch; ++u, row += g.w.pitch)
            if (u >= h.begin && u < h.end)
              pack_row(image + (h_first + u * g.h.source_step) * g.w.source_length, w_first, g.w.source_step, w,
                       g.w.pitch, row);
            else
              memset(row, 0, g.w.pitch * sizeof(float));
        }
        memset(row, 0, (plane + planes.plane_stride - row) * sizeof(float));
      }
}

// Copies the plane of row r (channel and phase) into y.
inline void unpack_target(const Conv2dGeometry& g, int64_t r, const float* plane, int64_t first_image, int64_t images,
                          float* y) {
  const int64_t phases = g.h.target_phases * g.w.target_phases;
  const int64_t channel = r / phases, phase = r % phases;
  const int64_t h_first = g.h.target_first[phase / g.w.target_phases];
  const int64_t w_first = g.w.target_first[phase % g.w.target_phases];
  const Range h = valid_range(h_first, g.h.target_step, g.h.target_length, g.h.grid);
  const Range w = valid_range(w_first, g.w.target_step, g.w.target_length, g.w.grid);
  const int64_t step = g.w.target_step;
  for (int64_t n = 0; n < images; ++n, plane += g.h.pitch * g.w.pitch) {
    float* image = y + ((first_image + n) * g.target_channels + channel) * g.h.target_length * g.w.target_length;
    for (int64_t u = h.begin; u < h.end; ++u) {
      const float* from = plane + u * g.w.pitch;
      float* to = image + (h_first + u * g.h.target_step) * g.w.target_length + w_first;
      if (step == 1)
        memcpy(to + w.begin, from + w.begin, (w.end - w.begin) * sizeof(float));
      else
        for (int64_t v = w.begin; v < w.end; ++v) to[v * step] = from[v];
    }
  }
}

// Copies channel r of dY into a plane, zero outside the image.
inline void pack_target(const Conv2dGeometry& g, const SourcePlanes& planes, int64_t r, const float* dy,
                        int64_t first_image, int64_t images, float* plane) {
  const Range w{0, g.w.grid};
  float* row = plane;
  for (int64_t n = 0; n < images; ++n) {
    const float* image = dy + ((first_image + n) * g.target_channels + r) * g.h.grid * g.w.grid;
    for (int64_t u = 0; u < g.h.pitch; ++u, row += g.w.pitch)
      if (u < g.h.grid)
        pack_row(image + u * g.w.grid, 0, 1, w, g.w.pitch, row);
      else
        memset(row, 0, g.w.pitch * sizeof(float));
  }
  memset(row, 0, (plane + planes.positions - row) * sizeof(float));
}

// The sum of a plane's first `positions` floats (a multiple of kWidth), in double: many terms, much cancellation.
inline double sum_plane(const float* plane, int64_t positions) {
  double lanes[kWidth] = {};
  for (int64_t q = 0; q < positions; q += kWidth)
    for (int i = 0; i < kWidth; ++i) lanes[i] += plane[q + i];
  double sum = 0.;
  for (int i = 0; i < kWidth; ++i) sum += lanes[i];
  return sum;
}

}  // namespace spfde::SPFDE_ISA
