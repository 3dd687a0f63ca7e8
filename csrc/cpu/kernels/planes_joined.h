// The copies of the joined layout (see planes.h): rows of images into zero-padded planes, and back.
#pragma once

#include "planes.h"

namespace spfde::cpu::SPFDE_ISA {

// Distances in floats between pixels of a row, and between channels.
struct Strides {
  int64_t pixel, channel;
};
inline Strides strides(int64_t channels, int64_t pixels, bool channels_last) {
  return channels_last ? Strides{channels, 1} : Strides{1, pixels};
}

// The pixels of an image that one phase holds: pixel + r * pixel_row + c * pixel_step <-> position + r * pitch + c.
struct Patch {
  int64_t rows, columns;
  int64_t pixel, pixel_row, pixel_step;
  int64_t position, pitch;
};

// One axis of a phase: element u of at most `most` is pixel first + u * step of `length`.
struct PhaseAxis {
  int64_t first, step, length, most;

  // Elements [begin, end) exist.
  int64_t begin() const { return first >= 0 ? 0 : ceil_div(-first, step); }
  int64_t end() const { return max(begin(), length > first ? min(most, ceil_div(length - first, step)) : 0); }
  int64_t pixel() const { return first + begin() * step; }
};

inline Patch patch_of(const PhaseAxis& h, const PhaseAxis& w, int64_t pitch) {
  return {h.end() - h.begin(),
          w.end() - w.begin(),
          h.pixel() * w.length + w.pixel(),
          h.step * w.length,
          w.step,
          h.begin() * pitch + w.begin(),
          pitch};
}
inline Patch source_patch(const Conv2dGeometry& g, int64_t h_phase, int64_t w_phase) {
  return patch_of({g.h.source_first[h_phase], g.h.source_step, g.h.source_length, g.h.pitch},
                  {g.w.source_first[w_phase], g.w.source_step, g.w.source_length, g.w.pitch}, g.w.pitch);
}
inline Patch target_patch(const Conv2dGeometry& g, int64_t h_phase, int64_t w_phase) {
  return patch_of({g.h.target_first[h_phase], g.h.target_step, g.h.target_length, g.h.grid},
                  {g.w.target_first[w_phase], g.w.target_step, g.w.target_length, g.w.grid}, g.w.pitch);
}

// Rows are short: a call of memcpy would cost more than most of them. The last vector overlaps the one before.
inline void copy_row(const float* x, int64_t n, float* out) {
  if (n >= kWidth) {
    for (int64_t u = 0; u + kWidth < n; u += kWidth) store(out + u, load(x + u));
    store(out + n - kWidth, load(x + n - kWidth));
  } else if (n >= 4) {
    for (int64_t u = 0; u + 4 < n; u += 4) store_quad(out + u, load_quad(x + u));
    store_quad(out + n - 4, load_quad(x + n - 4));
  } else {
    for (int64_t u = 0; u < n; ++u) out[u] = x[u];
  }
}
// out[u] = x[2 * u].
inline void copy_alternate(const float* x, int64_t n, float* out) {
  if (n >= 4) {
    for (int64_t u = 0; u + 4 < n; u += 4) store_quad(out + u, load_alternate(x + 2 * u));
    store_quad(out + n - 4, load_alternate(x + 2 * (n - 4)));
  } else {
    for (int64_t u = 0; u < n; ++u) out[u] = x[2 * u];
  }
}
// out[2 * u] = even[u], out[2 * u + 1] = odd[u].
inline void interleave(const float* even, const float* odd, int64_t n, float* out) {
  if (n >= 4) {
    for (int64_t u = 0; u + 4 < n; u += 4) store_alternate(out + 2 * u, load_quad(even + u), load_quad(odd + u));
    store_alternate(out + 2 * (n - 4), load_quad(even + n - 4), load_quad(odd + n - 4));
  } else {
    for (int64_t u = 0; u < n; ++u) {
      out[2 * u] = even[u];
      out[2 * u + 1] = odd[u];
    }
  }
}

// One phase of an image into its plane; `next` floats further the image that comes next begins.
inline void pack_patch(const Patch patch, const float* image, int64_t pixel, int64_t next, float* plane) {
  constexpr int64_t kLine = 16;
  const int64_t step = patch.pixel_step * pixel, row = patch.pixel_row * pixel, n = patch.columns;
  image += patch.pixel * pixel;
  plane += patch.position;
  for (int64_t r = 0; r < patch.rows; ++r, image += row, plane += patch.pitch) {
    for (int64_t u = 0; u < n * step; u += kLine) __builtin_prefetch(image + next + u);
    if (step == 1)
      copy_row(image, n, plane);
    else if (step == 2)
      copy_alternate(image, n, plane);
    else
      for (int64_t u = 0; u < n; ++u) plane[u] = image[u * step];
  }
}

// The way back.
inline void unpack_patch(const Patch patch, const float* plane, int64_t pixel, float* image) {
  const int64_t step = patch.pixel_step * pixel, row = patch.pixel_row * pixel, n = patch.columns;
  image += patch.pixel * pixel;
  plane += patch.position;
  for (int64_t r = 0; r < patch.rows; ++r, image += row, plane += patch.pitch)
    if (step == 1)
      copy_row(plane, n, image);
    else
      for (int64_t u = 0; u < n; ++u) image[u * step] = plane[u];
}

// Whether the pixels of two phases of the same rows alternate, those of `even` first.
inline bool alternate(const Patch& even, const Patch& odd) {
  const int64_t more = even.columns - odd.columns;
  return odd.columns > 0 && odd.pixel == even.pixel + 1 && even.pixel_step == 2 && (more == 0 || more == 1);
}
inline void unpack_pair(const Patch even, const Patch odd, const float* even_plane, const float* odd_plane,
                        float* image) {
  const int64_t n = odd.columns;
  even_plane += even.position;
  odd_plane += odd.position;
  image += even.pixel;
  for (int64_t r = 0; r < even.rows; ++r, image += even.pixel_row, even_plane += even.pitch, odd_plane += even.pitch) {
    interleave(even_plane, odd_plane, n, image);
    if (even.columns > n) image[2 * n] = even_plane[n];
  }
}

// Channels [begin, end) into planes, zero outside the images.
inline void pack_joined_source(const Conv2dGeometry& g, const Planes& p, const float* x, bool channels_last,
                               int64_t begin, int64_t end, int64_t first, int64_t images, float* planes) {
  const int64_t pixels = g.h.source_length * g.w.source_length, size = g.h.pitch * g.w.pitch;
  const int64_t image = g.source_channels * pixels;
  const Strides by = strides(g.source_channels, pixels, channels_last);
  const int64_t next = (end - begin) * by.channel;
  clear(planes, (end - begin) * p.channel_stride);
  for (int64_t ph = 0; ph < g.h.source_phases; ++ph)
    for (int64_t pw = 0; pw < g.w.source_phases; ++pw) {
      const int64_t plane = g.plane[ph * g.w.source_phases + pw];
      if (plane < 0) continue;
      const Patch patch = source_patch(g, ph, pw);
      for (int64_t c = begin; c < end; ++c)
        for (int64_t n = 0; n < images; ++n)
          pack_patch(patch, x + (first + n) * image + c * by.channel, by.pixel, next,
                     planes + (c - begin) * p.channel_stride + plane * p.plane_stride + n * size);
    }
}

// The way back: channels [begin, end) of dX from the planes; pixels that no tap reads are 0.
inline void unpack_joined_source(const Conv2dGeometry& g, const Planes& p, const float* planes, int64_t begin,
                                 int64_t end, bool channels_last, int64_t first, int64_t images, float* dx) {
  const int64_t pixels = g.h.source_length * g.w.source_length, size = g.h.pitch * g.w.pitch;
  const Strides by = strides(g.source_channels, pixels, channels_last);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t n = 0; n < images; ++n) {
      float* image = dx + (first + n) * g.source_channels * pixels + c * by.channel;
      for (int64_t i = 0; i < pixels; ++i) image[i * by.pixel] = 0.f;
      for (int64_t ph = 0; ph < g.h.source_phases; ++ph)
        for (int64_t pw = 0; pw < g.w.source_phases; ++pw)
          if (const int64_t plane = g.plane[ph * g.w.source_phases + pw]; plane >= 0)
            unpack_patch(source_patch(g, ph, pw), planes + c * p.channel_stride + plane * p.plane_stride + n * size,
                         by.pixel, image);
    }
}

// Channels [begin, end) of dY into planes, zero outside the images; one phase.
inline void pack_joined_target(const Conv2dGeometry& g, const Planes& p, const float* dy, bool channels_last,
                               int64_t begin, int64_t end, int64_t first, int64_t images, float* planes) {
  const int64_t pixels = g.h.target_length * g.w.target_length, size = g.h.pitch * g.w.pitch;
  const int64_t image = g.target_channels * pixels;
  const Strides by = strides(g.target_channels, pixels, channels_last);
  const Patch patch = target_patch(g, 0, 0);
  const int64_t next = (end - begin) * by.channel;
  clear(planes, (end - begin) * p.target_size);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t n = 0; n < images; ++n)
      pack_patch(patch, dy + (first + n) * image + c * by.channel, by.pixel, next,
                 planes + (c - begin) * p.target_size + n * size);
}

// Channels [begin, end) of Y from their planes, one per phase.
inline void unpack_joined_target(const Conv2dGeometry& g, const Planes& p, const float* planes, int64_t begin,
                                 int64_t end, bool channels_last, int64_t first, int64_t images, float* y) {
  const int64_t pixels = g.h.target_length * g.w.target_length, size = g.h.pitch * g.w.pitch;
  const int64_t image = g.target_channels * pixels;
  const Strides by = strides(g.target_channels, pixels, channels_last);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t ph = 0; ph < g.h.target_phases; ++ph, planes += g.w.target_phases * p.target_size) {
      float* channel = y + first * image + c * by.channel;
      const int64_t phases = g.w.target_phases, last = p.target_size;
      const Patch left = target_patch(g, ph, 0), right = target_patch(g, ph, phases - 1);
      const bool leads = alternate(left, right), follows = alternate(right, left);
      for (int64_t n = 0; n < images; ++n) {
        const float* plane = planes + n * size;
        if (by.pixel == 1 && leads)
          unpack_pair(left, right, plane, plane + last, channel + n * image);
        else if (by.pixel == 1 && follows)
          unpack_pair(right, left, plane + last, plane, channel + n * image);
        else
          for (int64_t pw = 0; pw < phases; ++pw)
            unpack_patch(target_patch(g, ph, pw), plane + pw * p.target_size, by.pixel, channel + n * image);
      }
    }
}

}  // namespace spfde::cpu::SPFDE_ISA
