// Two passes over the values of every channel, sums and then the result, in either memory layout.
//
// An operation says what to sum and what to write, for a vector of values or a single one (T), at position `at` of
// the image tensors: before(c, numbers), term(T, numbers, at, lane), misses(sums, numbers), after(c, sums, numbers),
// write(T, numbers, at, lane); sums() and writes() say which passes are wanted, misses() whether the first is wanted
// again with the numbers that it has changed.
#pragma once

#include "cpu/workspace.h"
#include "simd.h"
#include "spfde/norm_act.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

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

// Operations and numbers travel by value into every inner loop: a store may alias what a reference points to.
template <class Op, class Numbers>
inline void write_span(Op op, Numbers m, int64_t at, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) op.write(Vec{}, m, at + i, i);
  for (; i < n; ++i) op.write(float{}, m, at + i, i);
}

typedef double Doubles __attribute__((vector_size(kWidth * 8)));
typedef double DoublesUnaligned __attribute__((vector_size(kWidth * 8), aligned(8), may_alias));

inline Doubles in_double(Vec v) { return __builtin_convertvector(v, Doubles); }

inline double sum_of_lanes(Doubles v, int64_t lanes = kWidth) {
  double sum = 0.;
  for (int64_t i = 0; i < lanes; ++i) sum += v[i];
  return sum;
}

constexpr int kUnroll = 4;  // independent sums in flight
// Additions in a row to a sum in float, before it is added to one in double: behind an outlier each may lose half a bit
// of it. What is added may be a few terms' sum itself.
constexpr int64_t kTerms = 8;

// ---- planes: neighbouring channels are taken together, so that memory is read in long runs --------------------------

// Lanes of float, emptied into double before they have taken more than kTerms sums.
struct Sums {
  Vec first = {}, second = {};
  int64_t held = 0;
  Doubles firsts = {}, seconds = {};
  Pair<double> rest = {0., 0.};

  void empty() {
    firsts += in_double(first);
    seconds += in_double(second);
    first = second = Vec{};
    held = 0;
  }
  Pair<double> total(int64_t lanes = kWidth) {
    empty();
    return {rest.first + sum_of_lanes(firsts, lanes), rest.second + sum_of_lanes(seconds, lanes)};
  }
  template <class Op>
  void add(Op op, Shared m, int64_t at, int64_t n) {
    constexpr int64_t kStep = kUnroll * kWidth;
    int64_t i = 0;
    while (i + kWidth <= n) {
      const int64_t end = min(n, i + kTerms * kStep);
      Vec a[kUnroll] = {}, b[kUnroll] = {};
      const auto take = [&](int k, Pair<Vec> t) {
        a[k] += t.first;
        b[k] += t.second;
      };
      for (; i + kStep <= end; i += kStep)
        for (int k = 0; k < kUnroll; ++k) take(k, op.term(Vec{}, m, at + i + k * kWidth, 0));
      for (; i + kWidth <= end; i += kWidth) take(0, op.term(Vec{}, m, at + i, 0));
      first += (a[0] + a[1]) + (a[2] + a[3]);
      second += (b[0] + b[1]) + (b[2] + b[3]);
      if (++held == kTerms) empty();
    }
    for (; i < n; ++i) {
      const Pair<float> t = op.term(float{}, m, at + i, 0);
      rest.first += t.first;
      rest.second += t.second;
    }
  }
};

template <class Op>
void over_planes(const NormShape& s, int threads, Op op) {
  constexpr int64_t kMost = 32, kFloats = 16384;  // channels taken together: at most, or floats of an image enough
  const int64_t together = min(min(kMost, ceil_div(kFloats, s.pixels)), ceil_div(s.channels, threads));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t begin = 0; begin < s.channels; begin += together) {
    const int64_t count = min(together, s.channels - begin);
    Shared m[kMost] = {};
    Sums sums[kMost];
    const auto at = [&](int64_t b, int64_t k) { return (b * s.channels + begin + k) * s.pixels; };
    for (int64_t k = 0; k < count; ++k) op.before(begin + k, m[k].numbers);
    if (op.sums())
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t k = 0; k < count; ++k) sums[k].add(op, m[k], at(b, k), s.pixels);
    for (int64_t k = 0; k < count; ++k) {
      Pair<double> total = sums[k].total();
      if (op.sums() && op.misses(total, m[k].numbers)) {
        sums[k] = {};
        for (int64_t b = 0; b < s.batch; ++b) sums[k].add(op, m[k], at(b, k), s.pixels);
        total = sums[k].total();
      }
      op.after(begin + k, total, m[k].numbers);
    }
    if (!op.writes()) continue;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t k = 0; k < count; ++k) write_span(op, m[k], at(b, k), s.pixels);
  }
}

// ---- channels_last: several pixels make a row of whole vectors, rows are split into shares -------

inline void add_in_double(double* sums, Vec v) { *reinterpret_cast<DoublesUnaligned*>(sums) += in_double(v); }
inline void add_in_double(double* sums, const double* others) {
  *reinterpret_cast<DoublesUnaligned*>(sums) += *reinterpret_cast<const DoublesUnaligned*>(others);
}

constexpr int64_t kRows = 4;  // rows whose terms are added before they are added to the sum

// Adds rows begin to end of kVectors vectors at `lane` to sums [2, lanes].
template <int kVectors, class Op>
void add_rows(Op op, PerLane m, int64_t begin, int64_t end, int64_t lanes, int64_t lane, double* sums) {
  Vec a[kVectors] = {}, b[kVectors] = {};
  int64_t r = begin;
  const auto term = [&](int64_t row, int k) {
    return op.term(Vec{}, m, row * lanes + lane + k * kWidth, lane + k * kWidth);
  };
  for (; r + kRows <= end; r += kRows)
    for (int k = 0; k < kVectors; ++k) {
      const Pair<Vec> t = term(r, k), u = term(r + 1, k), v = term(r + 2, k), w = term(r + 3, k);
      a[k] += (t.first + u.first) + (v.first + w.first);
      b[k] += (t.second + u.second) + (v.second + w.second);
    }
  for (; r < end; ++r)
    for (int k = 0; k < kVectors; ++k) {
      const Pair<Vec> t = term(r, k);
      a[k] += t.first;
      b[k] += t.second;
    }
  for (int k = 0; k < kVectors; ++k) {
    add_in_double(sums + lane + k * kWidth, a[k]);
    add_in_double(sums + lanes + lane + k * kWidth, b[k]);
  }
}

template <class Op>
void sum_share(const Op& op, const PerLane& m, int64_t begin, int64_t end, int64_t lanes, double* sums) {
  for (int64_t i = 0; i < 2 * lanes; ++i) sums[i] = 0.;
  for (int64_t r = begin; r < end; r += kTerms * kRows) {
    const int64_t stop = min(end, r + kTerms * kRows);
    int64_t lane = 0;
    for (; lane + kUnroll * kWidth <= lanes; lane += kUnroll * kWidth)
      add_rows<kUnroll>(op, m, r, stop, lanes, lane, sums);
    for (; lane < lanes; lane += kWidth) add_rows<1>(op, m, r, stop, lanes, lane, sums);
  }
}

template <class Op>
void over_channels_last(const NormShape& s, int threads, Op op) {
  int64_t repeats = 1;
  while (repeats * s.channels % kWidth != 0 || repeats * s.channels < kUnroll * kWidth) repeats *= 2;
  const int64_t values = s.batch * s.pixels * s.channels;
  const int64_t lanes = repeats * s.channels, rows = values / lanes, rest = values % lanes;
  const int64_t wide = lanes * ceil_div(256, lanes);  // a row when writing: less to do per row
  // The number of shares does not depend on the threads, so neither do the bits.
  const int64_t share = max(64, ceil_div(rows, 64)), shares = max(1, ceil_div(rows, share));
  Scratch scratch;
  float* table = take<float>(scratch, kNumbers * wide);
  double* sums = take<double>(scratch, 2 * shares * lanes);
  const PerLane m = {table, wide};
  bool again = false;

  const auto spread = [&](int64_t c, const float* numbers) {
    for (int k = 0; k < kNumbers; ++k)
      for (int64_t i = c; i < wide; i += s.channels) table[k * wide + i] = numbers[k];
  };
  const auto collect = [&](int64_t c, float* numbers) {
    for (int k = 0; k < kNumbers; ++k) numbers[k] = table[k * wide + c];
  };
  const auto total = [&](int64_t c) {
    Pair<double> sum = {0., 0.};
    for (int64_t i = c; i < lanes; i += s.channels) {
      sum.first += sums[i];
      sum.second += sums[lanes + i];
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
    for (int pass = 0; pass < 2 && op.sums(); ++pass) {
#pragma omp for schedule(static)
      for (int64_t s = 0; s < shares; ++s)
        sum_share(op, m, s * share, min(rows, (s + 1) * share), lanes, sums + 2 * s * lanes);
      // The first share's sums become those of all.
#pragma omp for schedule(static)
      for (int64_t i = 0; i < 2 * lanes; i += kWidth)
        for (int64_t s = 1; s < shares; ++s) add_in_double(sums + i, sums + 2 * s * lanes + i);
      if (pass > 0) break;
#pragma omp for schedule(static) reduction(|| : again)
      for (int64_t c = 0; c < s.channels; ++c) {
        float numbers[kNumbers];
        collect(c, numbers);
        if (!op.misses(total(c), numbers)) continue;
        spread(c, numbers);
        again = true;
      }
      if (!again) break;
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < s.channels; ++c) {
      float numbers[kNumbers];
      collect(c, numbers);
      op.after(c, op.sums() ? total(c) : Pair<double>{0., 0.}, numbers);
      spread(c, numbers);
    }
#pragma omp for schedule(static)
    for (int64_t at = 0; at < (op.writes() ? values : 0); at += wide) write_span(op, m, at, min(wide, values - at));
  }
}

}  // namespace
}  // namespace spfde::cpu::SPFDE_ISA
