// Two passes over the values of every channel, sums and then the result, in either memory layout.
//
// An operation says what to sum and what to write, for a vector of values or a single one (T), at position `at` of
// the image tensors: before(c, numbers), term(T, numbers, at, lane), after(c, sums, numbers), write(T, numbers, at,
// lane); sums() says whether the first pass is wanted.
#pragma once

#include "simd.h"
#include "spfde/norm.h"
#include "spfde/workspace.h"

namespace spfde::SPFDE_ISA {
namespace {

template <class T>
T read(const float* p);
template <>
inline Vec read<Vec>(const float* p) {
  return load(p);
}
template <>
inline float read<float>(const float* p) {
  return *p;
}
inline void put(float* p, Vec v) { store(p, v); }
inline void put(float* p, float v) { *p = v; }

template <class T>
struct Pair {
  T first, second;
};

// A channel's numbers: before the sums kMean (for Forward a guess of it), and for Backward kScale and kBias; then all.
enum { kMean, kScale, kBias, kSlope, kOffset, kNumbers };

struct Shared {  // in a plane all values have the same
  float numbers[kNumbers];
  template <class T>
  T get(int k, int64_t) const {
    return T{} + numbers[k];
  }
};

struct PerLane {  // in channels_last neighbours differ
  const float* numbers;
  int64_t lanes;
  template <class T>
  T get(int k, int64_t lane) const {
    return read<T>(numbers + k * lanes + lane);
  }
};

template <class Op, class Numbers>
inline void write_span(const Op& op, const Numbers& m, int64_t at, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) op.write(Vec{}, m, at + i, i);
  for (; i < n; ++i) op.write(float{}, m, at + i, i);
}

inline double sum_of_lanes(Vec v) {
  double sum = 0.;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
}

constexpr int kUnroll = 4;  // independent sums in flight

// ---- planes: a thread owns a channel, whose values stay in the cache between the passes -----------------------------

// Lanes of float, emptied into double before they have taken many terms.
struct Sums {
  Vec first[kUnroll] = {}, second[kUnroll] = {};
  Pair<double> total = {0., 0.};
  int64_t held = 0;

  void empty() {
    for (int k = 0; k < kUnroll; ++k) {
      total.first += sum_of_lanes(first[k]);
      total.second += sum_of_lanes(second[k]);
      first[k] = second[k] = Vec{};
    }
    held = 0;
  }
  void take(int k, Pair<Vec> t) {
    first[k] += t.first;
    second[k] += t.second;
  }
  template <class Op>
  void add(const Op& op, const Shared& m, int64_t at, int64_t n) {
    constexpr int64_t kStep = kUnroll * kWidth, kMost = 64 * kStep;
    int64_t i = 0;
    while (i + kWidth <= n) {
      const int64_t end = min(n, i + kMost);
      for (; i + kStep <= end; i += kStep)
        for (int k = 0; k < kUnroll; ++k) take(k, op.term(Vec{}, m, at + i + k * kWidth, 0));
      for (; i + kWidth <= end; i += kWidth) take(0, op.term(Vec{}, m, at + i, 0));
      held += kMost < n ? kMost : n;
      if (held >= kMost) empty();
    }
    for (; i < n; ++i) {
      const Pair<float> t = op.term(float{}, m, at + i, 0);
      total.first += t.first;
      total.second += t.second;
    }
  }
};

template <class Op>
void over_planes(const NormShape& s, int threads, Op op) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < s.channels; ++c) {
    Shared m = {};
    op.before(c, m.numbers);
    Sums sums;
    if (op.sums())
      for (int64_t b = 0; b < s.batch; ++b) sums.add(op, m, (b * s.channels + c) * s.pixels, s.pixels);
    sums.empty();
    op.after(c, sums.total, m.numbers);
    for (int64_t b = 0; b < s.batch; ++b) write_span(op, m, (b * s.channels + c) * s.pixels, s.pixels);
  }
}

// ---- channels_last: several pixels make a row of whole vectors, rows are split into blocks that threads share -------

// Adds rows begin to end of kBlock vectors at `lane`.
template <int kBlock, class Op>
void add_rows(const Op& op, const PerLane& m, int64_t begin, int64_t end, int64_t lane, double* first, double* second) {
  Vec a[kBlock] = {}, b[kBlock] = {};
  for (int64_t r = begin; r < end; ++r)
    for (int k = 0; k < kBlock; ++k) {
      const Pair<Vec> t = op.term(Vec{}, m, r * m.lanes + lane + k * kWidth, lane + k * kWidth);
      a[k] += t.first;
      b[k] += t.second;
    }
  for (int k = 0; k < kBlock; ++k)
    for (int i = 0; i < kWidth; ++i) {
      first[lane + k * kWidth + i] += a[k][i];
      second[lane + k * kWidth + i] += b[k][i];
    }
}

template <class Op>
void add_block(const Op& op, const PerLane& m, int64_t begin, int64_t end, double* first, double* second) {
  for (int64_t i = 0; i < m.lanes; ++i) first[i] = second[i] = 0.;
  const int64_t step = max(8, min(64, 8192 / m.lanes));  // rows that stay in the first cache, and float sums short
  for (int64_t r = begin; r < end; r += step) {
    const int64_t stop = min(end, r + step);
    int64_t lane = 0;
    for (; lane + kUnroll * kWidth <= m.lanes; lane += kUnroll * kWidth)
      add_rows<kUnroll>(op, m, r, stop, lane, first, second);
    for (; lane < m.lanes; lane += kWidth) add_rows<1>(op, m, r, stop, lane, first, second);
  }
}

template <class Op>
void over_channels_last(const NormShape& s, int threads, Op op) {
  int64_t repeats = 1;
  while (repeats * s.channels % kWidth != 0 || repeats * s.channels < kUnroll * kWidth) repeats *= 2;
  const int64_t lanes = repeats * s.channels, values = s.batch * s.pixels * s.channels;
  const int64_t rows = values / lanes, rest = values % lanes;
  // The number of blocks does not depend on the threads, so neither do the bits.
  const int64_t block = max(16, ceil_div(rows, max(4, min(64, 65536 / lanes)))), blocks = ceil_div(rows, block);
  float* table = scratch<float>(Scratch::bias, kNumbers * lanes);
  double* sums = scratch<double>(Scratch::partial, 2 * blocks * lanes);
  const PerLane m = {table, lanes};

  const auto spread = [&](int64_t c, const float* numbers) {
    for (int k = 0; k < kNumbers; ++k)
      for (int64_t i = c; i < lanes; i += s.channels) table[k * lanes + i] = numbers[k];
  };
  const auto total = [&](int64_t c) {
    Pair<double> sum = {0., 0.};
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = c; i < lanes; i += s.channels) {
        sum.first += sums[2 * b * lanes + i];
        sum.second += sums[(2 * b + 1) * lanes + i];
      }
    for (int64_t i = c; i < rest; i += s.channels) {
      const Pair<float> t = op.term(float{}, m, rows * lanes + i, i);
      sum.first += t.first;
      sum.second += t.second;
    }
    return sum;
  };

#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < s.channels; ++c) {
      float numbers[kNumbers] = {};
      op.before(c, numbers);
      spread(c, numbers);
    }
    if (op.sums()) {
#pragma omp for schedule(static)
      for (int64_t b = 0; b < blocks; ++b)
        add_block(op, m, b * block, min(rows, (b + 1) * block), sums + 2 * b * lanes, sums + (2 * b + 1) * lanes);
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < s.channels; ++c) {
      float numbers[kNumbers];
      for (int k = 0; k < kNumbers; ++k) numbers[k] = table[k * lanes + c];
      op.after(c, op.sums() ? total(c) : Pair<double>{0., 0.}, numbers);
      spread(c, numbers);
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r <= rows; ++r) write_span(op, m, r * lanes, r < rows ? lanes : rest);
  }
}

}  // namespace
}  // namespace spfde::SPFDE_ISA
