// Batch lanes: activations as tiles [tile][feature][lane], and back.
//
// Consecutive lanes make a feature's stream. A lane is one sample of a row-major activation [batch, features], or one
// position of an activation [images, features, positions] (a pointwise convolution in NCHW): `positions` lanes then
// lie side by side in memory, and packing is copying instead of transposing. Unused lanes of the last tile hold zero.
#pragma once

#include "simd.h"

namespace spfde::SPFDE_ISA {

struct Lanes {
  int64_t batch;      // lanes in all
  int64_t positions;  // 1 for a row-major activation
  int64_t tiles;
  int64_t lanes;  // per tile, a multiple of kWidth

  int64_t used(int64_t tile) const { return max(0, min(lanes, batch - tile * lanes)); }

  // Memory offset of a tile whose lanes are all in use and neighbours in memory, else -1.
  int64_t direct(int64_t tile, int64_t features) const {
    const int64_t image = tile * lanes / positions, position = tile * lanes % positions;
    const bool whole = positions > 1 && used(tile) == lanes && position + lanes <= positions;
    return whole ? image * features * positions + position : -1;
  }
};

// Tiles of at most `widest` lanes, as equal as the vector width allows.
inline Lanes split_batch(int64_t batch, int64_t positions, int64_t widest) {
  const int64_t tiles = ceil_div(batch, widest);
  return {batch, positions, tiles, round_up(ceil_div(batch, tiles), kWidth)};
}

inline void copy_floats(const float* from, int64_t n, float* to) {
  int64_t q = 0;
  for (; q + kWidth <= n; q += kWidth) store(to + q, load(from + q));
  for (; q < n; ++q) to[q] = from[q];
}

constexpr int64_t kAhead = 16;  // planes

// Planes lie pages apart, where no hardware prefetcher follows.
template <int kWrite>
inline void prefetch_floats(const float* p, int64_t n) {
  for (int64_t q = 0; q < n; q += 16) __builtin_prefetch(p + q, kWrite, 3);
}

// Calls body(first lane of the tile, memory offset of it, n) for each run of lanes that are neighbours in memory.
template <typename Body>
inline void for_runs(const Lanes& l, int64_t tile, int64_t features, Body body) {
  const int64_t first = tile * l.lanes, used = l.used(tile);
  for (int64_t b = 0; b < used;) {
    const int64_t image = (first + b) / l.positions, position = (first + b) % l.positions;
    const int64_t n = min(l.positions - position, used - b);
    body(b, image * features * l.positions + position, n);
    b += n;
  }
}

// packed[(f - begin) * lanes + b] = feature f of lane b of the tile for f in [begin, end), zero in unused lanes.
inline void pack_lanes(const Lanes& l, int64_t tile, int64_t begin, int64_t end, const float* x, int64_t features,
                       float* packed) {
  const int64_t used = l.used(tile);
  if (l.positions > 1) {
    for_runs(l, tile, features, [&](int64_t b, int64_t offset, int64_t n) {
      for (int64_t f = begin; f < end; ++f) {
        prefetch_floats<0>(x + offset + (f + kAhead) * l.positions, n);
        copy_floats(x + offset + f * l.positions, n, packed + (f - begin) * l.lanes + b);
      }
    });
    for (int64_t f = begin; f < end; ++f)
      for (int64_t b = used; b < l.lanes; ++b) packed[(f - begin) * l.lanes + b] = 0.f;
    return;
  }
  x += tile * l.lanes * features;
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

// The way back, for features [begin, end).
inline void unpack_lanes(const Lanes& l, int64_t tile, int64_t begin, int64_t end, const float* packed, float* y,
                         int64_t features) {
  const int64_t used = l.used(tile);
  if (l.positions > 1) {
    for_runs(l, tile, features, [&](int64_t b, int64_t offset, int64_t n) {
      for (int64_t f = begin; f < end; ++f) {
        prefetch_floats<1>(y + offset + (f + kAhead) * l.positions, n);
        copy_floats(packed + (f - begin) * l.lanes + b, n, y + offset + f * l.positions);
      }
    });
    return;
  }
  y += tile * l.lanes * features;
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

}  // namespace spfde::SPFDE_ISA
