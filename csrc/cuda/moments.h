// Sums over the values of a channel: by threads in float32 without losing what is small, by blocks in double.
//
// Images are seen as planes of pixels, whose values share a channel (kAlong: pixels lie along memory), or as rows of
// channels. A thread takes four neighbours in memory at a time, kDepth times; each has sums of its own, so that both
// cases are one. A block has `wide` threads side by side and kThreads / wide rows of them.
#pragma once

#include "cuda/launch.h"
#include "spfde/norm_act.h"

namespace spfde::cuda::moments {

constexpr int kThreads = 256;
constexpr int kDepth = 8;

struct Images {
  int64_t channels;
  int pixels;    // of a plane
  int count;     // values of a channel
  bool vectors;  // fours are aligned and whole
};

// Four neighbours: where the first lies, and how many of them there are.
struct Place {
  int64_t at;
  int valid;
};

inline int64_t fours(int64_t values) { return ceil_div(values, 4); }

// Item `number` of a channel (kAlong) or of four of them, counted image by image.
template <bool kAlong>
__device__ __forceinline__ Place place(const Images& images, int64_t channel, int number) {
  if constexpr (kAlong) {
    const int across = (images.pixels + 3) / 4, first = number % across * 4;
    return {(number / across * images.channels + channel) * images.pixels + first, min(4, images.pixels - first)};
  }
  return {number * images.channels + channel, static_cast<int>(min(int64_t{4}, images.channels - channel))};
}

template <typename T>
__device__ __forceinline__ void load(const T* from, const Place& place, bool vectors, float (&to)[4]) {
  if (vectors) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from + place.at);
#pragma unroll
    for (int v = 0; v < 4; ++v) to[v] = to_float(four.at[v]);
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) to[v] = v < place.valid ? to_float(from[place.at + v]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void store(T* to, const Place& place, bool vectors, const float (&from)[4]) {
  if (vectors) {
    Four<T> four;
#pragma unroll
    for (int v = 0; v < 4; ++v) four.at[v] = from_float<T>(from[v]);
    *reinterpret_cast<Four<T>*>(to + place.at) = four;
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v)
    if (v < place.valid) to[place.at + v] = from_float<T>(from[v]);
}

// A sum that keeps what its additions round off (Knuth's two-sum).
struct Sum {
  float high = 0.0f, low = 0.0f;

  __device__ __forceinline__ void add(float value) {
    const float sum = high + value, added = sum - high;
    low += (high - (sum - added)) + (value - added);
    high = sum;
  }
  __device__ __forceinline__ double total() const { return static_cast<double>(high) + static_cast<double>(low); }
};

__device__ __forceinline__ float pairwise(const float (&d)[kDepth]) {
  static_assert(kDepth == 8);
  return ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
}

// Number, sum and squared deviations from the mean of values, a few at a time: those few around their own mean, then
// joined (Chan, Golub and LeVeque 1979). No outlier, wherever it comes, leaves less to the others.
struct Moments {
  int count = 0;
  Sum sum, squares;

  // Those of d that are `there`, bit by bit; the rest of d is zero.
  __device__ __forceinline__ void add(const float (&d)[kDepth], unsigned there) {
    if (there == 0) return;
    const auto more = static_cast<float>(__popc(there));
    const float added = pairwise(d), mean = added / more;
    float around[kDepth];
#pragma unroll
    for (int k = 0; k < kDepth; ++k) around[k] = there >> k & 1 ? (d[k] - mean) * (d[k] - mean) : 0.0f;
    squares.add(pairwise(around));
    if (count > 0) {
      const auto before = static_cast<float>(count);
      const float apart = mean - sum.high / before;
      squares.add(apart * apart * (before * (more / (before + more))));
    }
    sum.add(added);
    count += __popc(there);
  }
};

// The sum over a block's rows, and with kAlong over the four, in every thread. shared: [kThreads, 4].
template <bool kAlong>
__device__ __forceinline__ void over_rows(double (&value)[4], int wide, double* shared) {
  constexpr int kValues = kAlong ? 1 : 4;
  if constexpr (kAlong) value[0] = (value[0] + value[1]) + (value[2] + value[3]);
  const int thread = threadIdx.x;
#pragma unroll
  for (int v = 0; v < kValues; ++v) shared[v * kThreads + thread] = value[v];
  for (int half = kThreads / 2; half >= wide; half /= 2) {
    __syncthreads();
    if (thread < half)
#pragma unroll
      for (int v = 0; v < kValues; ++v) shared[v * kThreads + thread] += shared[v * kThreads + thread + half];
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < 4; ++v) value[v] = shared[v % kValues * kThreads + thread % wide];
  __syncthreads();  // before anyone writes there again
}

// How the sums of all channels are cut: blocks side by side, each of `wide` threads, and parts of a channel's items.
struct Cut {
  int64_t across;
  int wide, parts, share;
  int items;

  Cut(const NormShape& shape, bool along, int multiprocessors) {
    const int64_t columns = along ? 1 : fours(shape.channels);
    wide = 1;
    while (wide < 8 && wide < columns) wide *= 2;
    across = along ? shape.channels : ceil_div(columns, wide);
    const int64_t all = along ? shape.batch * fours(shape.pixels) : shape.batch * shape.pixels;
    const int64_t most = std::min<int64_t>(1024, ceil_div(all, kThreads / wide * kDepth));
    const int64_t wanted = std::clamp<int64_t>(ceil_div(4 * multiprocessors, across), 1, most);
    share = static_cast<int>(ceil_div(all, wanted));
    parts = static_cast<int>(ceil_div(all, share));
    items = static_cast<int>(all);
  }
};

}  // namespace spfde::cuda::moments
