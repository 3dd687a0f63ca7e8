// Batch lanes: activations as [chunk][feature][lane], and back.
//
// Consecutive lanes make a feature's stream. A lane is one sample of a row-major activation [batch, features], or one
// position of an activation [images, features, positions] (a pointwise convolution in NCHW): `positions` lanes then
// lie side by side in memory, and packing is copying instead of transposing. Unused lanes of the last chunk hold zero.
#pragma once

#include "simd.h"

namespace spfde::cpu::SPFDE_ISA {

struct Lanes {
  int64_t batch;      // lanes in all
  int64_t positions;  // 1 for a row-major activation
  int64_t chunks;
  int64_t lanes;  // per chunk, a multiple of kWidth

  int64_t used(int64_t chunk) const { return max(0, min(lanes, batch - chunk * lanes)); }

  // Memory offset of a chunk whose lanes are all in use and neighbours in memory, else -1.
  int64_t direct(int64_t chunk, int64_t features) const {
    const int64_t image = chunk * lanes / positions, position = chunk * lanes % positions;
    const bool whole = positions > 1 && used(chunk) == lanes && position + lanes <= positions;
    return whole ? image * features * positions + position : -1;
  }
};

// Chunks of at most `widest` lanes, as equal as the vector width allows.
inline Lanes split_batch(int64_t batch, int64_t positions, int64_t widest) {
  const int64_t chunks = ceil_div(batch, widest);
  return {batch, positions, chunks, round_up(ceil_div(batch, chunks), kWidth)};
}

constexpr int64_t kAhead = 16;  // rows to prefetch ahead: planes lie pages apart, where no hardware prefetcher follows

// to[f * to_pitch + q] = from[f * from_pitch + q] for q < n; `ahead` is whichever of the two lies in far memory.
template <int V, int kWrite>
inline void copy_rows(const float* from, int64_t from_pitch, int64_t rows, int64_t n, float* to, int64_t to_pitch) {
  const char* ahead = reinterpret_cast<const char*>(kWrite ? to : from);
  const int64_t step = (kWrite ? to_pitch : from_pitch) * int64_t{sizeof(float)};
  for (int64_t f = 0; f < rows; ++f, from += from_pitch, to += to_pitch, ahead += step) {
    const int64_t vectors = V > 0 ? V : n / kWidth;
    for (int64_t v = 0; v < vectors; ++v) {
      if (v * kWidth % 16 == 0) __builtin_prefetch(ahead + kAhead * step + v * kWidth * 4, kWrite, 3);
      store(to + v * kWidth, load(from + v * kWidth));
    }
    if (V == 0)
      for (int64_t q = vectors * kWidth; q < n; ++q) to[q] = from[q];
  }
}
template <int kWrite>
inline void copy_rows(const float* from, int64_t from_pitch, int64_t rows, int64_t n, float* to, int64_t to_pitch) {
  if (n == 2 * kWidth) return copy_rows<2, kWrite>(from, from_pitch, rows, n, to, to_pitch);
  if (n == 8 * kWidth) return copy_rows<8, kWrite>(from, from_pitch, rows, n, to, to_pitch);
  copy_rows<0, kWrite>(from, from_pitch, rows, n, to, to_pitch);
}

// ---- row-major: 8 x 8 (or 4 x 4, 16 x 16) transpositions ----------------------------------------------------------

inline void transpose_in(const Lanes& l, int64_t chunk, int64_t begin, int64_t end, const float* x, int64_t features,
                         float* packed) {
  const int64_t used = l.used(chunk);
  x += chunk * l.lanes * features;
  for (int64_t b = 0; b < l.lanes; b += kWidth) {
    int64_t f = begin;
    if (b + kWidth <= used) {
      for (; f + kWidth <= end; f += kWidth) {
        Vec v[kWidth];
        for (int i = 0; i < kWidth; ++i) v[i] = load(x + (b + i) * features + f);
        transpose(v);
        for (int i = 0; i < kWidth; ++i) store(packed + (f - begin + i) * l.lanes + b, v[i]);
      }
    }
    for (; f < end; ++f)
      for (int i = 0; i < kWidth; ++i)
        packed[(f - begin) * l.lanes + b + i] = b + i < used ? x[(b + i) * features + f] : 0.f;
  }
}

inline void transpose_out(const Lanes& l, int64_t chunk, int64_t begin, int64_t end, const float* packed, float* y,
                          int64_t features) {
  const int64_t used = l.used(chunk);
  y += chunk * l.lanes * features;
  for (int64_t b = 0; b < used; b += kWidth) {
    int64_t f = begin;
    if (b + kWidth <= used) {
      for (; f + kWidth <= end; f += kWidth) {
        Vec v[kWidth];
        for (int i = 0; i < kWidth; ++i) v[i] = load(packed + (f - begin + i) * l.lanes + b);
        transpose(v);
        for (int i = 0; i < kWidth; ++i) store(y + (b + i) * features + f, v[i]);
      }
    }
    for (; f < end; ++f)
      for (int64_t i = b; i < min(b + kWidth, used); ++i) y[i * features + f] = packed[(f - begin) * l.lanes + i];
  }
}

// -------------------------------------------------------------------------------------------------------------------

// Calls body(memory offset, packed offset, n) for each run of lanes of chunks [chunk, chunk + count) that are
// neighbours in memory; packed chunks are chunk_stride floats apart.
template <typename Body>
inline void for_runs(const Lanes& l, int64_t chunk, int64_t count, int64_t chunk_stride, int64_t features, Body body) {
  const int64_t first = chunk * l.lanes, end = min(l.batch, first + count * l.lanes);
  for (int64_t b = first; b < end;) {
    const int64_t image = b / l.positions, position = b % l.positions, lane = (b - first) % l.lanes;
    const int64_t n = min(min(l.positions - position, end - b), l.lanes - lane);
    body(image * features * l.positions + position, (b - first) / l.lanes * chunk_stride + lane, n);
    b += n;
  }
}

// packed[(f - begin) * lanes + b] = feature f of lane b of a chunk for f in [begin, end), zero in unused lanes; for
// chunks [chunk, chunk + count), packed chunk_stride floats apart.
inline void pack_lanes(const Lanes& l, int64_t chunk, int64_t count, int64_t begin, int64_t end, const float* x,
                       int64_t features, float* packed, int64_t chunk_stride) {
  if (l.positions == 1) {
    for (int64_t t = 0; t < count; ++t) transpose_in(l, chunk + t, begin, end, x, features, packed + t * chunk_stride);
    return;
  }
  for_runs(l, chunk, count, chunk_stride, features, [&](int64_t offset, int64_t at, int64_t n) {
    copy_rows<0>(x + offset + begin * l.positions, l.positions, end - begin, n, packed + at, l.lanes);
  });
  const int64_t last = chunk + count - 1, used = l.used(last);
  packed += (count - 1) * chunk_stride;
  for (int64_t f = begin; f < end; ++f)
    for (int64_t b = used; b < l.lanes; ++b) packed[(f - begin) * l.lanes + b] = 0.f;
}

// The way back, for features [begin, end).
inline void unpack_lanes(const Lanes& l, int64_t chunk, int64_t count, int64_t begin, int64_t end, const float* packed,
                         int64_t chunk_stride, float* y, int64_t features) {
  if (l.positions == 1) {
    for (int64_t t = 0; t < count; ++t) transpose_out(l, chunk + t, begin, end, packed + t * chunk_stride, y, features);
    return;
  }
  for_runs(l, chunk, count, chunk_stride, features, [&](int64_t offset, int64_t at, int64_t n) {
    copy_rows<1>(packed + at, l.lanes, end - begin, n, y + offset + begin * l.positions, l.positions);
  });
}

}  // namespace spfde::cpu::SPFDE_ISA
