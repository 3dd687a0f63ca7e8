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

// Lane i of the result is the sum of the lanes of v[i]: the same tree, adding instead of keeping both halves.
inline Vec sum_each(Vec (&v)[kWidth]) {
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = interleave_lower(v[i], v[i + half]) + interleave_upper(v[i], v[i + half]);
  return v[0];
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace spfde::SPFDE_ISA
