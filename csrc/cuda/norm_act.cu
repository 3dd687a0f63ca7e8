// y = act(batch_norm(x) [+ residual]) and its gradients: sums over channels (norm_sums.h), what follows from them for
// each channel, then the images; in evaluation the forward is the last of the three alone. Every sum has a fixed order.
#include "cuda/norm_sums.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

using namespace moments;

// ---- what follows for a channel, a block each -----------------------------------------------------------------------

// The sum over parts of what f makes of each, in every thread.
template <typename F>
__device__ __forceinline__ double over_parts(int parts, F f, double* shared) {
  double sum[4] = {};
  for (int part = threadIdx.x; part < parts; part += kThreads) sum[0] += f(part);
  over_rows<true>(sum, 1, shared);
  return sum[0];
}

struct Statistics {
  float* mean;
  float* var;
  float* running_mean;  // or nullptr
  float* running_var;   // or nullptr
  double momentum;
};

// origin: [channels] at this step, what the sums were taken around.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    norm_statistics_kernel(int64_t channels, int count, int parts, const T* origin, int64_t step, const double* sums,
                           Statistics to) {
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const int64_t c = blockIdx.x;
  const auto of = [&](int part, int k) { return sums[(int64_t{part} * 3 + k) * channels + c]; };
  const double offset = over_parts(parts, [&](int part) { return of(part, 1); }, shared) / count;
  const double squares = over_parts(
      parts,
      [&](int part) {
        const double apart = of(part, 1) / of(part, 0) - offset;
        return of(part, 2) + of(part, 0) * apart * apart;
      },
      shared);
  if (threadIdx.x != 0) return;
  const double mean = static_cast<double>(to_float(origin[c * step])) + offset, var = squares / count;
  to.mean[c] = static_cast<float>(mean);
  to.var[c] = static_cast<float>(var);
  const auto approach = [&](float* running, double target) {
    if (running) running[c] = static_cast<float>((1.0 - to.momentum) * running[c] + to.momentum * target);
  };
  approach(to.running_mean, mean);
  approach(to.running_var, squares / (count - 1));
}

struct Gradients {
  float* dweight;
  float* dbias;
  float* slope;  // dx = scale * dz + slope * (x - mean) + offset; nullptr where the statistics are constants
  float* offset;
};

__global__ void __launch_bounds__(kThreads) norm_grad_kernel(Channels channels, int64_t count_of_channels, int count,
                                                             int parts, const double* sums, Gradients to) {
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const int64_t c = blockIdx.x;
  const auto of = [&](int part, int k) { return sums[(int64_t{part} * 2 + k) * count_of_channels + c]; };
  const double first = over_parts(parts, [&](int part) { return of(part, 0); }, shared);
  const double second = over_parts(parts, [&](int part) { return of(part, 1); }, shared);
  if (threadIdx.x != 0) return;
  const double inverse_var = 1.0 / (static_cast<double>(channels.var[c]) + channels.eps);
  const double scale = Affine(channels, c).scale;
  to.dbias[c] = static_cast<float>(first);
  to.dweight[c] = static_cast<float>(second * sqrt(inverse_var));
  if (!to.slope) return;
  to.slope[c] = static_cast<float>(-scale * inverse_var * second / count);
  to.offset[c] = static_cast<float>(-scale * first / count);
}

// ---- the images, as rows x fours: planes, or pixels of all channels -------------------------------------------------

constexpr int kRows = 4;  // of a thread

struct Matrix {
  int64_t rows, width, across;  // values of a row, blocks side by side
  int wide;

  Matrix(const NormShape& shape, bool along) {
    width = along ? shape.pixels : shape.channels;
    rows = along ? shape.batch * shape.channels : shape.batch * shape.pixels;
    wide = 1;
    while (wide < kThreads && wide < fours(width)) wide *= 2;
    across = ceil_div(fours(width), wide);
  }
  int64_t blocks() const { return across * ceil_div(rows, kThreads / wide * kRows); }
};

// Calls write(place, channel of the first value, whether it is another one than before) for each of the thread's fours.
template <bool kAlong, typename Write>
__device__ __forceinline__ void over_fours(const Matrix& m, int64_t channels, Write write) {
  const int64_t column = (blockIdx.x % m.across * m.wide + threadIdx.x % m.wide) * 4;
  if (column >= m.width) return;
  const int tall = kThreads / m.wide, valid = static_cast<int>(min(int64_t{4}, m.width - column));
  int64_t row = blockIdx.x / m.across * tall * kRows + threadIdx.x / m.wide;
#pragma unroll
  for (int k = 0; k < kRows; ++k, row += tall)
    if (row < m.rows) write(Place{row * m.width + column, valid}, kAlong ? row % channels : column, kAlong || k == 0);
}

template <typename T, bool kAlong>
__global__ void __launch_bounds__(kThreads) norm_act_kernel(Matrix matrix, Images images, Channels channels,
                                                            Bounds bounds, const T* x, const T* residual, T* y) {
  Affine affine[4];
  over_fours<kAlong>(matrix, images.channels, [&](const Place& place, int64_t channel, bool other) {
    if (other)
#pragma unroll
      for (int v = 0; v < (kAlong ? 1 : 4); ++v) affine[v] = Affine(channels, min(channel + v, images.channels - 1));
    float z[4], added[4] = {};
    load(x, place, images.vectors, z);
    if (residual) load(residual, place, images.vectors, added);
#pragma unroll
    for (int v = 0; v < 4; ++v) z[v] = bounds.apply(affine[kAlong ? 0 : v].of(z[v]) + added[v]);
    store(y, place, images.vectors, z);
  });
}

// slope: nullptr where the statistics are constants. dz: dy behind the activation where that is known, or nullptr.
// nullptr.
template <typename T, bool kAlong>
__global__ void __launch_bounds__(kThreads)
    norm_act_grad_kernel(Matrix matrix, Images images, Channels channels, Bounds bounds, const float* slope,
                         const float* offset, const T* x, const T* dy, const T* dz, T* dx) {
  Affine affine[4];
  float slopes[4] = {}, offsets[4] = {};
  over_fours<kAlong>(matrix, images.channels, [&](const Place& place, int64_t channel, bool other) {
    if (other)
#pragma unroll
      for (int v = 0; v < (kAlong ? 1 : 4); ++v) {
        const int64_t c = min(channel + v, images.channels - 1);
        affine[v] = Affine(channels, c);
        if (slope) slopes[v] = slope[c], offsets[v] = offset[c];
      }
    float value[4], passed[4];
    load(x, place, images.vectors, value);
    load(dz ? dz : dy, place, images.vectors, passed);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int n = kAlong ? 0 : v;
      if (!dz) passed[v] = bounds.gate(affine[n].of(value[v]), passed[v]);
      passed[v] *= affine[n].scale;
      if (slope) passed[v] += (value[v] - affine[n].mean) * slopes[n] + offsets[n];
    }
    store(dx, place, images.vectors, passed);
  });
}

// ---- the ops --------------------------------------------------------------------------------------------------------

std::string named(const char* op, const NormShape& s) {
  return std::string(op) + " [" + std::to_string(s.batch) + ", " + std::to_string(s.channels) + ", " +
         std::to_string(s.pixels) + "]";
}

// One pixel a plane is a row of channels.
bool along(const NormShape& s) { return !s.channels_last && s.pixels > 1; }

template <typename T, typename... A>
Images images_of(const NormShape& s, const std::string& problem, const A*... arrays) {
  const auto addresses = (uintptr_t{0} | ... | reinterpret_cast<uintptr_t>(arrays));
  return {s.channels, static_cast<int>(s.pixels), count(s.batch * s.pixels, problem),
          (along(s) ? s.pixels : s.channels) % 4 == 0 && addresses % (4 * sizeof(T)) == 0};
}

unsigned checked(int64_t blocks, const std::string& problem) {
  if (blocks >= int64_t{1} << 31)
    throw std::invalid_argument("expected fewer than 2^40 values, got " + problem + "; try a smaller batch");
  return static_cast<unsigned>(blocks);
}

constexpr size_t kShared = 4 * kThreads * sizeof(double);

template <typename T, bool kAlong>
void forward(const NormActArgs& a, int multiprocessors, double* sums, const Exec& exec) {
  const std::string problem = named("norm_act", a.shape);
  const auto *x = as<const T>(a.x), *residual = as<const T>(a.residual);
  auto* y = as<T>(a.y);
  const Images images = images_of<T>(a.shape, problem, x, residual, y);
  if (a.batch_statistics) {
    const Cut cut(a.shape, kAlong, multiprocessors);
    launch(problem, exec, {dim3(checked(cut.across, problem), cut.parts), dim3(kThreads), kShared},
           norm_moments_kernel<T, kAlong>, images, x, cut.wide, cut.share, cut.items, sums);
    const Statistics to = {a.mean, a.var, a.running_mean, a.running_var, a.momentum};
    launch(problem, exec, {dim3(checked(images.channels, problem)), dim3(kThreads), kShared}, norm_statistics_kernel<T>,
           images.channels, images.count, cut.parts, x, kAlong ? a.shape.pixels : int64_t{1}, sums, to);
  }
  const Matrix matrix(a.shape, kAlong);
  const Channels channels = {a.mean, a.var, a.weight, a.bias, static_cast<float>(a.eps)};
  launch(problem, exec, {dim3(checked(matrix.blocks(), problem)), dim3(kThreads)}, norm_act_kernel<T, kAlong>, matrix,
         images, channels, Bounds(a.act), x, residual, y);
}

template <typename T, bool kAlong>
void backward(const NormActGradArgs& a, int multiprocessors, double* sums, const Exec& exec) {
  const std::string problem = named("norm_act_grad", a.shape);
  const auto *x = as<const T>(a.x), *y = as<const T>(a.y), *dy = as<const T>(a.dy);
  auto *dx = as<T>(a.dx), *dresidual = as<T>(a.dresidual);
  const Images images = images_of<T>(a.shape, problem, x, y, dy, dx, dresidual);
  const Cut cut(a.shape, kAlong, multiprocessors);
  const Channels channels = {a.mean, a.var, a.weight, a.bias, static_cast<float>(a.eps)};
  const Bounds bounds(a.act);
  launch(problem, exec, {dim3(checked(cut.across, problem), cut.parts), dim3(kThreads), kShared},
         norm_grad_sums_kernel<T, kAlong>, images, channels, bounds, x, y, dy, dresidual, cut.wide, cut.share,
         cut.items, sums);
  auto* free = reinterpret_cast<float*>(sums + 2 * int64_t{cut.parts} * images.channels);
  auto* slope = a.batch_statistics ? free : nullptr;
  const Gradients to = {a.dweight, a.dbias, slope, free + images.channels};
  launch(problem, exec, {dim3(checked(images.channels, problem)), dim3(kThreads), kShared}, norm_grad_kernel, channels,
         images.channels, images.count, cut.parts, sums, to);
  const Matrix matrix(a.shape, kAlong);
  launch(problem, exec, {dim3(checked(matrix.blocks(), problem)), dim3(kThreads)}, norm_act_grad_kernel<T, kAlong>,
         matrix, images, channels, bounds, a.batch_statistics ? to.slope : nullptr, to.offset, x, dy,
         y ? dresidual : nullptr, dx);
}

}  // namespace

int64_t norm_act_scratch(const NormShape& shape, int multiprocessors) {
  const Cut cut(shape, along(shape), multiprocessors);
  return 3 * cut.parts * shape.channels * static_cast<int64_t>(sizeof(double)) +
         2 * shape.channels * static_cast<int64_t>(sizeof(float));
}

void norm_act(const NormActArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) {
    const auto run = along(args.shape) ? forward<decltype(zero), true> : forward<decltype(zero), false>;
    run(args, multiprocessors, static_cast<double*>(scratch), exec);
  });
}

void norm_act_grad(const NormActGradArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) {
    const auto run = along(args.shape) ? backward<decltype(zero), true> : backward<decltype(zero), false>;
    run(args, multiprocessors, static_cast<double*>(scratch), exec);
  });
}

}  // namespace spfde::cuda
