// One chunk of images on its way through a convolution: its layout, the copies in and out, and where streams lie.
#pragma once

#include "cpu/geometry.h"
#include "cpu/workspace.h"
#include "planes.h"
#include "planes_joined.h"
#include "stream.h"

namespace spfde::cpu::SPFDE_ISA {

// One call's layout: planes, where pixels go, and how rows are shared among tasks.
struct Layout {
  Planes planes;
  Places source, target;
  Padding padding;
  int64_t share, shares;  // rows that a task computes, and how many times
};

// `together` rows stay in one share.
inline Layout lay_out(const Conv2dGeometry& g, int64_t lanes, int64_t rows, int64_t together, int threads,
                      Scratch& scratch) {
  Layout l{};
  l.planes = plan_planes(g, lanes);
  const int64_t positions = l.planes.source_size / l.planes.lanes;  // what 32-bit offsets count
  if (positions > INT32_MAX) refuse_planes(positions);
  if (l.planes.lanes > 1) {
    l.source = source_places(g, l.planes, scratch);
    l.target = target_places(g, l.planes, scratch);
    l.padding = source_padding(l.planes, l.source, scratch);
  }
  l.share = max(1, ceil_div(rows / together, max(1, ceil_div(threads, l.planes.chunks)))) * together;
  l.shares = ceil_div(rows, l.share);
  return l;
}

// Channels [begin, end) of what the source gives, into lanes.
template <typename Source>
inline void pack_lanes(const Conv2dGeometry& g, const Layout& l, const Source& source, bool channels_last,
                       int64_t first, int64_t images, int64_t begin, int64_t end, float* packed) {
  clear_padding(l.planes, l.padding, end - begin, packed);
  move_in(l.source, l.planes.lanes, l.planes.channel_stride, begin, end, g.source_channels, channels_last, source,
          first, images, packed);
}

// Channels [begin, end) of X.
inline void pack_source(const Conv2dGeometry& g, const Layout& l, const float* x, bool channels_last, int64_t first,
                        int64_t images, int64_t begin, int64_t end, float* packed) {
  if (l.planes.lanes == 1) return pack_joined_source(g, l.planes, x, channels_last, begin, end, first, images, packed);
  pack_lanes(g, l, Pixels{x}, channels_last, first, images, begin, end, packed);
}

// Rows [begin, end) of dY; one row per channel.
inline void pack_target(const Conv2dGeometry& g, const Layout& l, const float* dy, bool channels_last, int64_t first,
                        int64_t images, int64_t begin, int64_t end, float* packed) {
  const Planes& p = l.planes;
  if (p.lanes == 1) return pack_joined_target(g, p, dy, channels_last, begin, end, first, images, packed);
  move_in(l.target, p.lanes, p.target_size / p.lanes, begin, end, g.target_channels, channels_last, Pixels{dy}, first,
          images, packed);
}

inline void unpack_target(const Conv2dGeometry& g, const Layout& l, const float* packed, int64_t begin, int64_t end,
                          bool channels_last, int64_t first, int64_t images, float* y) {
  const Planes& p = l.planes;
  const int64_t phases = g.h.target_phases * g.w.target_phases;
  if (p.lanes == 1)
    return unpack_joined_target(g, p, packed, begin / phases, end / phases, channels_last, first, images, y);
  move_out(l.target, p.lanes, p.target_size / p.lanes * phases, begin / phases, end / phases, g.target_channels,
           channels_last, packed, first, images, y);
}

// Channels [begin, end) of dX out of the source planes that gathered it.
inline void unpack_source(const Conv2dGeometry& g, const Layout& l, const float* packed, int64_t begin, int64_t end,
                          bool channels_last, int64_t first, int64_t images, float* dx) {
  const Planes& p = l.planes;
  if (p.lanes == 1) return unpack_joined_source(g, p, packed, begin, end, channels_last, first, images, dx);
  move_out(l.source, p.lanes, p.channel_stride, begin, end, g.source_channels, channels_last,
           packed + begin * p.channel_stride * p.lanes, first, images, dx);
}

// Where the stream of each column of the weight begins, in the planes of a group's source channels. A table, because
// finding channel and tap of every stored weight took a sixth of a product of 512 channels on 4x4 images.
inline const int32_t* column_positions(const Conv2dGeometry& g, const Planes& p, Scratch& scratch) {
  const int64_t channels = g.source_channels / g.groups, taps = g.h.taps * g.w.taps;
  int32_t* position = take<int32_t>(scratch, channels * taps);
  for (int64_t i = 0; i < channels * taps; ++i)
    position[i] = static_cast<int32_t>(i < taps ? p.tap_position(g, i / g.w.taps, i % g.w.taps)
                                                : position[i - taps] + p.channel_stride);
  return position;
}

// Position of every stored weight in the source planes, and where each panel of source channels begins in each row.
struct Streams {
  int64_t panels, panel;   // source channels per panel
  const int32_t* offset;   // [nnz]
  const int32_t* segment;  // [(panels + 1) * rows]
};

// One visit to a row covers `runs` runs of `floats` floats; panels are a multiple of `width` channels.
inline Streams index_streams(const Conv2dGeometry& g, const Planes& planes, const int32_t* row_ptr, const int32_t* col,
                             int64_t rows, int64_t width, int64_t runs, int64_t floats, int threads, Scratch& scratch) {
  const int64_t taps = g.h.taps * g.w.taps;
  const int64_t source_group = g.source_channels / g.groups, row_group = rows / g.groups;
  const int64_t bytes = (runs + planes.shift_rows) * (floats + planes.shift_floats) * int64_t{sizeof(float)} * g.planes;
  const double per_channel = row_ptr[rows] / (static_cast<double>(rows) * max(1, source_group));
  // A panel must not begin inside a block, as it could where groups are no multiple of the width.
  const bool ragged = width > 1 && g.groups > 1 && source_group % width != 0;
  const int64_t panel = round_up(ragged ? max(1, g.source_channels) : panel_streams(bytes, per_channel), width);
  const int64_t panels = max(1, ceil_div(g.source_channels, panel));
  int32_t* offset = take<int32_t>(scratch, row_ptr[rows]);
  int32_t* segment = take<int32_t>(scratch, (panels + 1) * rows);
  const int32_t* position = column_positions(g, planes, scratch);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first_channel = r / row_group * source_group;
    const int32_t base = static_cast<int32_t>(first_channel * planes.channel_stride);
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) offset[k] = base + position[col[k]];
    split_row(row_ptr, col, rows, r, source_group * taps, panels, panel * taps, first_channel * taps, segment);
  }
  return {panels, panel, offset, segment};
}

// out[k] = the sum over threads, in thread order, of partial[thread * n + k]; 0 for k in [n, capacity).
template <typename T>
inline void add_partials(const T* partial, int64_t n, int64_t threads, int64_t capacity, float* out) {
  for (int64_t k = 0; k < n; ++k) {
    T sum = 0;
    for (int64_t t = 0; t < threads; ++t) sum += partial[t * n + k];
    out[k] = static_cast<float>(sum);
  }
  for (int64_t k = n; k < capacity; ++k) out[k] = 0.f;
}

}  // namespace spfde::cpu::SPFDE_ISA
