// Of norm_act: what it does to a value, and the sums over channels that its statistics and gradients are made of.
#pragma once

#include "cuda/bounds.h"
#include "cuda/moments.h"

namespace spfde::cuda::moments {

struct Channels {
  const float* mean;
  const float* var;
  const float* weight;  // or nullptr
  const float* bias;    // or nullptr
  float eps;
};

// z = (x - mean) * scale + bias.
struct Affine {
  float mean, scale, bias;

  __device__ __forceinline__ Affine() {}
  __device__ __forceinline__ Affine(const Channels& of, int64_t c)
      : mean(of.mean[c]),
        scale((of.weight ? of.weight[c] : 1.0f) / sqrtf(of.var[c] + of.eps)),
        bias(of.bias ? of.bias[c] : 0.0f) {}
  __device__ __forceinline__ float of(float x) const { return (x - mean) * scale + bias; }
};

// ---- sums: [parts, how many, channels] in double --------------------------------------------------------------------

template <bool kAlong>
__device__ __forceinline__ int64_t first_channel(int wide) {
  return kAlong ? int64_t{blockIdx.x} : (int64_t{blockIdx.x} * wide + threadIdx.x % wide) * 4;
}

// Row by row, a channel's sums, of the threads that hold them.
template <bool kAlong, int kSums>
__device__ __forceinline__ void write_sums(const double (&sums)[kSums][4], int64_t channel, int64_t channels, int wide,
                                           double* to) {
  if (static_cast<int>(threadIdx.x) >= wide) return;
#pragma unroll
  for (int v = 0; v < (kAlong ? 1 : 4); ++v)
    if (channel + v < channels)
      for (int k = 0; k < kSums; ++k) to[(int64_t{blockIdx.y} * kSums + k) * channels + channel + v] = sums[k][v];
}

// Calls take(places, there) for the thread's items of the block's part, kDepth at a time; bit k of there[v]: value v of
// item k is one.
template <bool kAlong, typename Take>
__device__ __forceinline__ void over_items(const Images& images, int64_t channel, int wide, int share, int items,
                                           Take take) {
  const int rows = kThreads / wide, end = min(items, (static_cast<int>(blockIdx.y) + 1) * share);
  if (channel >= images.channels) return;
  for (int first = blockIdx.y * share + threadIdx.x / wide; first < end; first += rows * kDepth) {
    Place places[kDepth];
    unsigned there[4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const int number = first + k * rows;
      places[k] = place<kAlong>(images, channel, min(number, end - 1));
      if (number >= end) places[k].valid = 0;
#pragma unroll
      for (int v = 0; v < 4; ++v) there[v] |= (v < places[k].valid) << k;
    }
    take(places, there);
  }
}

template <typename T, bool kAlong>
__global__ void __launch_bounds__(kThreads, 2)
    norm_moments_kernel(Images images, const T* x, int wide, int share, int items, double* sums) {
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const int64_t channel = first_channel<kAlong>(wide);
  // Around the channel's first value: where all are equal the rest is exactly zero.
  float origin[4] = {};
  if (channel < images.channels) {
    float first[4];
    load(x, place<kAlong>(images, channel, 0), images.vectors, first);
#pragma unroll
    for (int v = 0; v < 4; ++v) origin[v] = first[kAlong ? 0 : v];
  }
  Moments own[4];
  over_items<kAlong>(images, channel, wide, share, items,
                     [&](const Place(&places)[kDepth], const unsigned (&there)[4]) {
                       float d[4][kDepth];
#pragma unroll
                       for (int k = 0; k < kDepth; ++k) {
                         float values[4];
                         load(x, places[k], images.vectors, values);
#pragma unroll
                         for (int v = 0; v < 4; ++v) d[v][k] = there[v] >> k & 1 ? values[v] - origin[v] : 0.0f;
                       }
#pragma unroll
                       for (int v = 0; v < 4; ++v) own[v].add(d[v], there[v]);
                     });
  double all[3][4];
#pragma unroll
  for (int v = 0; v < 4; ++v) all[0][v] = own[v].count, all[1][v] = own[v].sum.total();
  over_rows<kAlong>(all[0], wide, shared);
  over_rows<kAlong>(all[1], wide, shared);
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const double count = own[v].count;
    const double apart = count > 0 ? own[v].sum.total() / count - all[1][v] / all[0][v] : 0.0;
    all[2][v] = own[v].squares.total() + count * apart * apart;
  }
  over_rows<kAlong>(all[2], wide, shared);
  write_sums<kAlong>(all, channel, images.channels, wide, sums);
}

// The gradients' sums, of dz = dy behind the activation and of dz * (x - mean); dz is kept where y tells it.
template <typename T, bool kAlong>
__global__ void __launch_bounds__(kThreads, 2)
    norm_grad_sums_kernel(Images images, Channels channels, Bounds bounds, const T* x, const T* y, const T* dy,
                          T* dresidual, int wide, int share, int items, double* sums) {
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const int64_t channel = first_channel<kAlong>(wide);
  Affine affine[4];
#pragma unroll
  for (int v = 0; v < 4; ++v) affine[v] = Affine(channels, min(channel + (kAlong ? 0 : v), images.channels - 1));
  Sum dz[4], dx[4];
  over_items<kAlong>(images, channel, wide, share, items,
                     [&](const Place(&places)[kDepth], const unsigned (&there)[4]) {
                       float first[4][kDepth], second[4][kDepth];
#pragma unroll
                       for (int k = 0; k < kDepth; ++k) {
                         const bool vectors = images.vectors && places[k].valid;
                         float value[4], given[4], passed[4];
                         load(x, places[k], vectors, value);
                         load(dy, places[k], vectors, passed);
                         if (y) load(y, places[k], vectors, given);
#pragma unroll
                         for (int v = 0; v < 4; ++v) {
                           passed[v] = bounds.gate(y ? given[v] : affine[v].of(value[v]), passed[v]);
                           const bool counts = there[v] >> k & 1;
                           first[v][k] = counts ? passed[v] : 0.0f;
                           second[v][k] = counts ? passed[v] * (value[v] - affine[v].mean) : 0.0f;
                         }
                         if (y) store(dresidual, places[k], vectors, passed);
                       }
#pragma unroll
                       for (int v = 0; v < 4; ++v) dz[v].add(pairwise(first[v])), dx[v].add(pairwise(second[v]));
                     });
  double all[2][4];
#pragma unroll
  for (int v = 0; v < 4; ++v) all[0][v] = dz[v].total(), all[1][v] = dx[v].total();
  over_rows<kAlong>(all[0], wide, shared);
  over_rows<kAlong>(all[1], wide, shared);
  write_sums<kAlong>(all, channel, images.channels, wide, sums);
}

}  // namespace spfde::cuda::moments
