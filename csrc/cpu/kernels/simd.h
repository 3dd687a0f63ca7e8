// The vector type of the instruction set this file is compiled for, and the shuffles the kernels need.
//
// Everything lives in namespace spfde::cpu::SPFDE_ISA, so that no symbol is shared between instruction sets: the linker
// would otherwise be free to keep the copy that this CPU cannot run.
#pragma once

#include <cstdint>

namespace spfde::cpu::SPFDE_ISA {

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

// The same for a vector or a single value.
template <class T>
inline T read(const float* p);
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

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SPFDE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SPFDE_SHUFFLE
template <typename V>
struct Mask {
  typedef int32_t type __attribute__((vector_size(sizeof(V))));
};
#define SPFDE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (typename Mask<decltype(a)>::type{__VA_ARGS__}))
#endif

// Interleavings within 128-bit lanes, where shuffles are cheap: of the lower and the upper two floats of each lane, and
// of its lower and upper pair.
inline Vec low_floats(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
#else
  return SPFDE_SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
inline Vec high_floats(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
  return SPFDE_SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}
inline Vec low_pairs(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
#else
  return SPFDE_SHUFFLE(a, b, 0, 1, 4, 5);
#endif
}
inline Vec high_pairs(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
#elif defined(__AVX2__)
  return SPFDE_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
#else
  return SPFDE_SHUFFLE(a, b, 2, 3, 6, 7);
#endif
}

#if defined(__AVX2__)
// The same for whole lanes, across the vector.
inline Vec low_lanes(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
#else
  return SPFDE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
#endif
}
inline Vec high_lanes(Vec a, Vec b) {
#if defined(__AVX512F__)
  return SPFDE_SHUFFLE(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#else
  return SPFDE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#endif
}
#endif

// v[i][j] <-> v[j][i]: whole 128-bit lanes first, then 4 x 4 floats within lanes.
inline void transpose(Vec (&v)[kWidth]) {
#if defined(__AVX2__)
  for (int width = kWidth / 4; width > 1; width /= 2) {
    Vec next[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      const int at = i / 4 * 8 + i % 4;
      next[at] = low_lanes(v[i], v[i + kWidth / 2]);
      next[at + 4] = high_lanes(v[i], v[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) v[i] = next[i];
  }
#endif
  for (int q = 0; q < kWidth; q += 4) {
    const Vec a = low_floats(v[q], v[q + 1]), b = low_floats(v[q + 2], v[q + 3]);
    const Vec c = high_floats(v[q], v[q + 1]), d = high_floats(v[q + 2], v[q + 3]);
    v[q] = low_pairs(a, b);
    v[q + 1] = high_pairs(a, b);
    v[q + 2] = low_pairs(c, d);
    v[q + 3] = high_pairs(c, d);
  }
}

typedef float Quad __attribute__((vector_size(16)));
typedef float QuadUnaligned __attribute__((vector_size(16), aligned(4), may_alias));

inline Quad load_quad(const float* p) { return *reinterpret_cast<const QuadUnaligned*>(p); }
inline void store_quad(float* p, Quad v) { *reinterpret_cast<QuadUnaligned*>(p) = v; }

// p[0], p[2], p[4], p[6].
inline Quad load_alternate(const float* p) {
  const Quad a = load_quad(p), b = load_quad(p + 3);
  return SPFDE_SHUFFLE(a, b, 0, 2, 5, 7);
}
// a[0], b[0], a[1], b[1], ... at p[0 : 8].
inline void store_alternate(float* p, Quad a, Quad b) {
  store_quad(p, SPFDE_SHUFFLE(a, b, 0, 4, 1, 5));
  store_quad(p + 4, SPFDE_SHUFFLE(a, b, 2, 6, 3, 7));
}

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

// (sum of a's lanes, of b's, of c's, of d's).
inline Quad sum_each(Vec a, Vec b, Vec c, Vec d) {
  const Vec ab = low_floats(a, b) + high_floats(a, b), cd = low_floats(c, d) + high_floats(c, d);
  return fold(low_pairs(ab, cd) + high_pairs(ab, cd));
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

// p[0 : n] = 0; unlike memset it bears a null pointer where n is 0.
template <typename T>
inline void clear(T* p, int64_t n) {
  if (n > 0) __builtin_memset(p, 0, n * sizeof(T));
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace spfde::cpu::SPFDE_ISA
