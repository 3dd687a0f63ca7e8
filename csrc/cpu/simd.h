// The vector type of the instruction set this file is compiled for, and the shuffles the kernels need.
//
// Everything lives in namespace spfde::SPFDE_ISA, so that no symbol is shared between instruction sets: the linker
// would otherwise be free to keep the copy that this CPU cannot run.
#pragma once

#include <cstdint>

namespace spfde::SPFDE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // floats in a vector register
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef float VecUnaligned __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
inline Vec broadcast(float s) { return s - Vec{}; }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SPFDE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SPFDE_SHUFFLE
typedef int32_t VecMask __attribute__((vector_size(kWidth * 4)));
#define SPFDE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VecMask{__VA_ARGS__}))
#endif

// (a0 b0 a1 b1 ...) of the lower and of the upper halves.
inline Vec interleave_lower(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return SPFDE_SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
inline Vec interleave_upper(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return SPFDE_SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

// v[i][j] <-> v[j][i]: log2(kWidth) perfect shuffles.
inline void transpose(Vec (&v)[kWidth]) {
  for (int round = 1; round < kWidth; round *= 2) {
    Vec next[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave_lower(v[i], v[i + kWidth / 2]);
      next[2 * i + 1] = interleave_upper(v[i], v[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) v[i] = next[i];
  }
}

typedef float Quad __attribute__((vector_size(16)));
typedef float QuadUnaligned __attribute__((vector_size(16), aligned(4), may_alias));

// Adds the 128-bit lanes of v.
inline Quad fold(Vec v) {
  union {
    Vec whole;
    Quad quads[kWidth / 4];
  } u = {v};
  Quad sum = u.quads[0];
  for (int i = 1; i < kWidth / 4; ++i) sum += u.quads[i];
  return sum;
}

// (sum of a's lanes, of b's, of c's, of d's). The first two rounds stay within 128-bit lanes, where shuffles are cheap.
inline Quad sum_each(Vec a, Vec b, Vec c, Vec d) {
#if defined(__AVX512F__)
#define SPFDE_LOW(x, y) SPFDE_SHUFFLE(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define SPFDE_HIGH(x, y) SPFDE_SHUFFLE(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define SPFDE_LOW2(x, y) SPFDE_SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define SPFDE_HIGH2(x, y) SPFDE_SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#elif defined(__AVX2__)
#define SPFDE_LOW(x, y) SPFDE_SHUFFLE(x, y, 0, 8, 1, 9, 4, 12, 5, 13)
#define SPFDE_HIGH(x, y) SPFDE_SHUFFLE(x, y, 2, 10, 3, 11, 6, 14, 7, 15)
#define SPFDE_LOW2(x, y) SPFDE_SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define SPFDE_HIGH2(x, y) SPFDE_SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define SPFDE_LOW(x, y) SPFDE_SHUFFLE(x, y, 0, 4, 1, 5)
#define SPFDE_HIGH(x, y) SPFDE_SHUFFLE(x, y, 2, 6, 3, 7)
#define SPFDE_LOW2(x, y) SPFDE_SHUFFLE(x, y, 0, 1, 4, 5)
#define SPFDE_HIGH2(x, y) SPFDE_SHUFFLE(x, y, 2, 3, 6, 7)
#endif
  const Vec ab = SPFDE_LOW(a, b) + SPFDE_HIGH(a, b), cd = SPFDE_LOW(c, d) + SPFDE_HIGH(c, d);
  return fold(SPFDE_LOW2(ab, cd) + SPFDE_HIGH2(ab, cd));
}

// The sum of p[0 : n] (n a multiple of kWidth) in double: many terms, much cancellation.
inline double sum_in_double(const float* p, int64_t n) {
  double lanes[kWidth] = {};
  for (int64_t q = 0; q < n; q += kWidth)
    for (int i = 0; i < kWidth; ++i) lanes[i] += p[q + i];
  double sum = 0.;
  for (int i = 0; i < kWidth; ++i) sum += lanes[i];
  return sum;
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace spfde::SPFDE_ISA
