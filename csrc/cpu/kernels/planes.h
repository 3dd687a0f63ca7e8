// How a chunk of images lies in memory while it is multiplied, and the copies into and out of that layout.
//
// *Lanes*: the images of a chunk side by side, [channel][plane][row][column][lane]. A run of output positions is then
// one aligned stream, every position of it is wanted, and borders cost nothing. *Joined* (lanes == 1, for batches too
// small to fill a vector): the images one after another, [channel][plane][image][row][column]; the whole plane is one
// run and the positions that fall on padding are computed in vain.
#pragma once

#include <utility>

#include "cpu/geometry.h"
#include "cpu/workspace.h"
#include "simd.h"
#include "stream.h"

namespace spfde::cpu::SPFDE_ISA {

struct Planes {
  int64_t lanes;
  int64_t images, chunks;            // per chunk; chunks of the batch
  int64_t plane_stride;              // positions between the planes of a source channel
  int64_t channel_stride;            // positions between source channels
  int64_t source_size;               // floats of all source channels
  int64_t target_size;               // floats of one target row
  int64_t runs, run;                 // runs of a target row, floats in each (a multiple of kWidth)
  int64_t source_run, target_run;    // floats between runs
  int64_t shift_rows, shift_floats;  // how far the taps reach beyond a run

  int64_t tap_position(const Conv2dGeometry& g, int64_t i, int64_t j) const {
    const int64_t plane = g.plane[g.h.source_phase[i] * g.w.source_phases + g.w.source_phase[j]];
    return plane * plane_stride + g.h.shift[i] * g.w.pitch + g.w.shift[j];
  }
};

// Lanes enough for a row of the output to fill its part of a strip, unless the batch is too small to fill them.
inline int64_t choose_lanes(const Conv2dGeometry& g) {
  constexpr double kFull = 0.6;  // share of the lanes in use below which joining the images is faster
  const int64_t part = g.h.grid > 1 ? kStrip / 2 : kStrip;
  const int64_t wanted = round_up(ceil_div(part, g.w.grid), kWidth);
  const int64_t lanes = min(wanted, round_up(g.batch, kWidth));
  const int64_t chunks = ceil_div(g.batch, lanes);
  return g.batch >= kFull * static_cast<double>(chunks * lanes) ? lanes : 1;
}

inline Planes plan_planes(const Conv2dGeometry& g, int64_t lanes) {
  constexpr int64_t kJoinedPositions = 512;  // positions per joined plane aimed at
  Planes p{};
  p.lanes = lanes;
  const bool joined = p.lanes == 1;
  const int64_t image = g.h.pitch * g.w.pitch;
  p.images = joined ? max(1, min(ceil_div(kJoinedPositions, image), g.batch)) : p.lanes;
  p.chunks = ceil_div(g.batch, p.images);
  const int64_t positions = joined ? round_up(p.images * image, kWidth) : image;
  const int64_t max_shift = g.h.max_shift * g.w.pitch + g.w.max_shift;
  p.plane_stride = round_up(positions + max_shift, joined ? kWidth : 1);
  // Planes a multiple of 1 KiB apart would compete for the same cache sets.
  if (p.plane_stride * p.lanes % 256 == 0) p.plane_stride += max(1, 16 / p.lanes);
  p.channel_stride = p.plane_stride * g.planes;
  p.source_size = p.channel_stride * g.source_channels * p.lanes;
  p.shift_rows = joined ? 0 : g.h.max_shift;
  p.shift_floats = joined ? max_shift : g.w.max_shift * p.lanes;
  if (joined) {
    p.runs = 1;
    p.run = p.target_size = positions;
    return p;
  }
  p.target_size = g.h.grid * g.w.grid * p.lanes;
  const bool contiguous = g.w.pitch == g.w.grid;
  p.runs = contiguous ? 1 : g.h.grid;
  p.run = contiguous ? p.target_size : g.w.grid * p.lanes;
  p.source_run = g.w.pitch * p.lanes;
  p.target_run = p.run;
  return p;
}

// ---- lanes ------------------------------------------------------------------------------------------------------

// Where the pixels of one image go: position in the planes of its channel, -1 for a pixel that nothing reads. `span`
// channels at a time, so that small images still come in whole vectors.
struct Places {
  int64_t pixels, span;
  const int32_t* at;  // [span * pixels]
};

struct Padding {
  int64_t count;
  const int32_t* at;  // positions of a source channel that hold padding
};

// One axis of the pixels: element u of phase p is pixel first[p] + u * step, for u < most.
struct PixelAxis {
  int64_t length, phases, step, most;
  const int64_t* first;

  // {phase, element} of pixel i; element -1 if no phase holds it.
  std::pair<int64_t, int64_t> find(int64_t i) const {
    for (int64_t p = 0; p < phases; ++p) {
      const int64_t from = i - first[p];
      if (from >= 0 && from % step == 0 && from / step < most) return {p, from / step};
    }
    return {0, -1};
  }
};

// plane: that of each phase, -1 for none; nullptr: phases in order. Planes are `stride` positions apart, rows `pitch`.
inline Places make_places(Scratch& scratch, const PixelAxis& h, const PixelAxis& w, const int64_t* plane,
                          int64_t stride, int64_t pitch, int64_t channels, int64_t channel_stride) {
  const int64_t pixels = h.length * w.length, span = max(1, min(channels, 64 / max(1, pixels)));
  int32_t* at = take<int32_t>(scratch, span * pixels);
  for (int64_t y = 0; y < h.length; ++y) {
    const auto [h_phase, u] = h.find(y);
    for (int64_t x = 0; x < w.length; ++x) {
      const auto [w_phase, v] = w.find(x);
      const int64_t phase = h_phase * w.phases + w_phase, index = plane ? plane[phase] : phase;
      const bool held = u >= 0 && v >= 0 && index >= 0;
      at[y * w.length + x] = held ? static_cast<int32_t>(index * stride + u * pitch + v) : -1;
    }
  }
  for (int64_t i = pixels; i < span * pixels; ++i)
    at[i] = at[i - pixels] < 0 ? -1 : at[i - pixels] + static_cast<int32_t>(channel_stride);
  return {pixels, span, at};
}

inline Places source_places(const Conv2dGeometry& g, const Planes& p, Scratch& scratch) {
  return make_places(scratch, {g.h.source_length, g.h.source_phases, g.h.source_step, g.h.pitch, g.h.source_first},
                     {g.w.source_length, g.w.source_phases, g.w.source_step, g.w.pitch, g.w.source_first}, g.plane,
                     p.plane_stride, g.w.pitch, g.source_channels, p.channel_stride);
}

// The rows of a target channel, one per phase, follow each other.
inline Places target_places(const Conv2dGeometry& g, const Planes& p, Scratch& scratch) {
  const int64_t row = p.target_size / p.lanes;
  return make_places(scratch, {g.h.target_length, g.h.target_phases, g.h.target_step, g.h.grid, g.h.target_first},
                     {g.w.target_length, g.w.target_phases, g.w.target_step, g.w.grid, g.w.target_first}, nullptr, row,
                     g.w.grid, g.target_channels, row * g.h.target_phases * g.w.target_phases);
}

inline Padding source_padding(const Planes& p, const Places& places, Scratch& scratch) {
  int32_t* at = take<int32_t>(scratch, 2 * p.channel_stride);
  int32_t* held = at + p.channel_stride;
  clear(held, p.channel_stride);
  for (int64_t i = 0; i < places.pixels; ++i)
    if (places.at[i] >= 0) held[places.at[i]] = 1;
  int64_t count = 0;
  for (int64_t q = 0; q < p.channel_stride; ++q)
    if (!held[q]) at[count++] = static_cast<int32_t>(q);
  return {count, at};
}

// What goes into lanes: the image tensor as it is. A source of another kind computes what `at` returns, a vector or a
// single value for place `i` of the tensor, the `lane`-th after the first of what `of` was given: a channel, or with
// channels_last the first of neighbours.
struct Pixels {
  static constexpr bool kByChannel = false;  // whether vectors must not cross channels in NCHW
  const float* x;

  Pixels of(int64_t, bool) const { return *this; }
  template <class T>
  T at(int64_t i, int64_t) const {
    return read<T>(x + i);
  }
};

// packed[place(i) * lanes + b] = source at from + b * image + i for the i < n that have a place; lanes without an image
// hold zero. A function of its own, as is the way back, so that what is transposed stays in registers.
template <typename Source, typename Place>
[[gnu::noinline]] void lanes_in(Source source, int64_t from, int64_t image, int64_t images, int64_t lanes, int64_t n,
                                Place place, float* packed) {
  for (int64_t b = 0; b < lanes; b += kWidth, packed += kWidth, from += kWidth * image) {
    const int64_t filled = min(kWidth, images - b);
    if (filled == kWidth && n >= kWidth) {
      for (int64_t next = 0; next < n; next += kWidth) {
        const int64_t i = min(next, n - kWidth);
        Vec v[kWidth];
        for (int j = 0; j < kWidth; ++j) v[j] = source.template at<Vec>(from + j * image + i, i);
        transpose(v);
        for (int j = 0; j < kWidth; ++j)
          if (const int64_t q = place(i + j); q >= 0) store(packed + q * lanes, v[j]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i)
        if (const int64_t q = place(i); q >= 0)
          for (int64_t j = 0; j < kWidth; ++j)
            packed[q * lanes + j] = j < filled ? source.template at<float>(from + j * image + i, i) : 0.f;
    }
  }
}

// y[b * image + i] = packed[place(i) * lanes + b] for i < n, 0 where i has no place.
template <typename Place>
[[gnu::noinline]] void lanes_out(const float* packed, int64_t image, int64_t images, int64_t lanes, int64_t n,
                                 Place place, float* y) {
  for (int64_t b = 0; b < images; b += kWidth, packed += kWidth, y += kWidth * image) {
    const int64_t filled = min(kWidth, images - b);
    if (filled == kWidth && n >= kWidth) {
      for (int64_t next = 0; next < n; next += kWidth) {
        const int64_t i = min(next, n - kWidth);
        Vec v[kWidth];
        for (int j = 0; j < kWidth; ++j) {
          const int64_t q = place(i + j);
          v[j] = q < 0 ? Vec{} : load(packed + q * lanes);
        }
        transpose(v);
        for (int j = 0; j < kWidth; ++j) store(y + j * image + i, v[j]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t q = place(i);
        for (int64_t j = 0; j < filled; ++j) y[j * image + i] = q < 0 ? 0.f : packed[q * lanes + j];
      }
    }
  }
}

constexpr int64_t kLine = 2 * kWidth;  // channels of channels_last memory at a time: whole cache lines of the image

// Calls move(first channel, its place in an image, n, place, its floats in the planes) for channels [begin, end) of a
// chunk. `stride` is the distance in positions between channels in the planes; channels_last memory is moved channels
// at a time, NCHW pixels at a time.
template <typename Move>
inline void move_lanes(const Places& places, int64_t span, int64_t lanes, int64_t stride, int64_t begin, int64_t end,
                       int64_t channels, bool channels_last, Move move) {
  if (channels_last) {
    for (int64_t c = begin; c < end; c += kLine)
      for (int64_t i = 0; i < places.pixels; ++i) {
        const int64_t at = places.at[i], first = at + (c - begin) * stride;
        move(c, i * channels + c, min(kLine, end - c), [=](int64_t j) { return at < 0 ? -1 : first + j * stride; }, 0);
      }
    return;
  }
  for (int64_t c = begin; c < end; c += span) {
    const int32_t* at = places.at;
    move(
        c, c * places.pixels, min(span, end - c) * places.pixels, [=](int64_t i) -> int64_t { return at[i]; },
        (c - begin) * stride * lanes);
  }
}

// Channels [begin, end) of images that begin at place `first` of the source, into lanes.
template <typename Source>
inline void move_in(const Places& places, int64_t lanes, int64_t stride, int64_t begin, int64_t end, int64_t channels,
                    bool channels_last, const Source& source, int64_t first, int64_t images, float* packed) {
  const int64_t image = channels * places.pixels, span = Source::kByChannel ? 1 : places.span;
  move_lanes(places, span, lanes, stride, begin, end, channels, channels_last,
             [&](int64_t c, int64_t from, int64_t n, auto place, int64_t to) {
               lanes_in(source.of(c, channels_last), first * image + from, image, images, lanes, n, place, packed + to);
             });
}

inline void move_out(const Places& places, int64_t lanes, int64_t stride, int64_t begin, int64_t end, int64_t channels,
                     bool channels_last, const float* packed, int64_t first, int64_t images, float* y) {
  const int64_t image = channels * places.pixels;
  move_lanes(places, places.span, lanes, stride, begin, end, channels, channels_last,
             [&](int64_t, int64_t to, int64_t n, auto place, int64_t from) {
               lanes_out(packed + from, image, images, lanes, n, place, y + first * image + to);
             });
}

inline void clear_padding(const Planes& p, const Padding& padding, int64_t channels, float* packed) {
  for (int64_t c = 0; c < channels; ++c, packed += p.channel_stride * p.lanes)
    for (int64_t i = 0; i < padding.count; ++i)
      for (int64_t b = 0; b < p.lanes; b += kWidth) store(packed + padding.at[i] * p.lanes + b, Vec{});
}

}  // namespace spfde::cpu::SPFDE_ISA
