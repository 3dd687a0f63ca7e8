// Batch lanes: a row-major activation [batch, features] as tiles [tile][feature][lane], and back.
//
// A lane is one sample; consecutive lanes make a feature's stream. Unused lanes of the last tile hold zero.
#pragma once

#include "simd.h"

namespace spfde::SPFDE_ISA {

struct Lanes {
  int64_t batch;
  int64_t tiles;
  int64_t lanes;  // per tile, a multiple of kWidth
};

// Tiles of at most `widest` lanes, as equal as the vector width allows.
inline Lanes split_batch(int64_t batch, int64_t widest) {
  const int64_t tiles = ceil_div(batch, widest);
  return {batch, tiles, round_up(ceil_div(batch, tiles), kWidth)};
}

inline int64_t lanes_used(const Lanes& l, int64_t tile) { return max(0, min(l.lanes, l.batch - tile * l.lanes)); }

// packed[f * lanes + b] = x[(tile * lanes + b) * features + f] for f in [begin, end), zero in unused lanes.
inline void pack_lanes(const Lanes& l, int64_t tile, int64_t begin, int64_t end, const float* x, int64_t features,
                       float* packed) {
  const int64_t used = lanes_used(l, tile);
  x += tile * l.lanes * features;
  for (int64_t b = 0; b < l.lanes; b += kWidth) {
    int64_t f = begin;
    if (b + kWidth <= used) {
      for (; f + kWidth <= end; f += kWidth) {
        Vec v[kWidth];
        for (int i = 0; i < kWidth; ++i) v[i] = load(x + (b + i) * features + f);
        transpose(v);
        for (int i = 0; i < kWidth; ++i) store(packed + (f + i) * l.lanes + b, v[i]);
      }
    }
    for (; f < end; ++f)
      for (int i = 0; i < kWidth; ++i) packed[f * l.lanes + b + i] = b + i < used ? x[(b + i) * features + f] : 0.f;
  }
}

// y[(tile * lanes + b) * features + f] = packed[(f - begin) * lanes + b] for f in [begin, end).
inline void unpack_lanes(const Lanes& l, int64_t tile, int64_t begin, int64_t end, const float* packed, float* y,
                         int64_t features) {
  const int64_t used = lanes_used(l, tile);
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
