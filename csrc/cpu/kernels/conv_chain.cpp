// A chunk of images goes through all steps before the next one: its values stay in lanes (see planes.h), in caches, and
// are never written to memory. Sums meet bias, residual and activation in registers.
#include "cpu/float32.h"
#include "per_thread.h"
#include "planes.h"
#include "stream.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// Where a value of a chunk lies: [channel][row][column][lane], zeros around each image as wide as its readers look.
struct Frame {
  int64_t top, left, rows, pitch;  // rows and columns with the zeros
  int64_t channel_stride;          // positions
  int64_t channels, height, width;
  int64_t at;      // floats from the start of a thread's memory
  bool inherited;  // from a value whose zeros are there

  int64_t first() const { return top * pitch + left; }
  int64_t floats() const { return channels * channel_stride * kWidth; }
  bool fits(const Frame& o) const {
    return top == o.top && left == o.left && rows == o.rows && pitch == o.pitch && channels == o.channels &&
           height == o.height && width == o.width;
  }
};

// How far a reader looks beyond its source, before and behind.
struct Reach {
  int64_t before, behind;
};
Reach reach(int64_t source, int64_t target, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return {pad, max(0, (target - 1) * stride + (kernel - 1) * dilation - pad - (source - 1))};
}

Frame frame_of(const ConvChainArgs& a, int64_t v) {
  const ChainValue& value = a.values[v];
  int64_t bottom = 0, right = 0;
  Frame f{};
  for (int64_t i = 0; i < a.step_count; ++i) {
    const ChainStep& s = a.steps[i];
    if (s.source != v) continue;
    const ChainValue& target = a.values[s.target];
    const Reach h = reach(value.height, target.height, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
    const Reach w = reach(value.width, target.width, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
    f.top = max(f.top, h.before), bottom = max(bottom, h.behind);
    f.left = max(f.left, w.before), right = max(right, w.behind);
  }
  f.channels = value.channels, f.height = value.height, f.width = value.width;
  f.rows = f.top + f.height + bottom, f.pitch = f.left + f.width + right;
  f.channel_stride = f.rows * f.pitch;
  if (f.channel_stride * kWidth % 256 == 0) ++f.channel_stride;  // see plan_planes
  if (f.channels * f.channel_stride > INT32_MAX) refuse_planes(f.channels * f.channel_stride);
  return f;
}

// The last step that reads a value, -1 if none does.
int64_t last_reader(const ConvChainArgs& a, int64_t v) {
  for (int64_t i = a.step_count - 1; i >= 0; --i)
    if (a.steps[i].source == v || a.steps[i].residual == v) return i;
  return -1;
}

// Gives every value its place; one that is read no more leaves it to another of the same frame, whose zeros are there.
// Returns the floats of a thread's memory.
int64_t place_values(const ConvChainArgs& a, Frame* frames, Scratch& scratch) {
  int64_t* free_after = take<int64_t>(scratch, a.value_count);
  int64_t total = 0;
  const auto place = [&](int64_t v, int64_t step) {
    frames[v] = frame_of(a, v);
    free_after[v] = max(step, last_reader(a, v));
    for (int64_t other = 0; other < a.value_count; ++other)
      if (other != v && free_after[other] < step && frames[other].fits(frames[v])) {
        frames[v].at = frames[other].at, frames[v].inherited = true;
        free_after[other] = INT64_MAX;  // handed on
        return;
      }
    frames[v].at = total;
    total += frames[v].floats();
  };
  for (int64_t v = 0; v < a.value_count; ++v) free_after[v] = INT64_MAX;
  for (int64_t v = 0; v < a.value_count; ++v)
    if (a.values[v].input) place(v, 0);
  for (int64_t i = 0; i < a.step_count; ++i) place(a.steps[i].target, i);
  return total;
}

Places pixel_places(const Frame& f, Scratch& scratch) {
  static constexpr int64_t kZero = 0;
  return make_places(scratch, {f.height, 1, 1, f.height, &kZero}, {f.width, 1, 1, f.width, &kZero}, nullptr, 0, f.pitch,
                     f.channels, f.channel_stride);
}

void clear_border(const Frame& f, float* frame) {
  const int64_t bottom = f.rows - f.top - f.height, right = f.pitch - f.left - f.width;
  for (int64_t c = 0; c < f.channels; ++c, frame += f.channel_stride * kWidth) {
    clear(frame, f.top * f.pitch * kWidth);
    clear(frame + (f.top + f.height) * f.pitch * kWidth, bottom * f.pitch * kWidth);
    for (int64_t y = f.top; y < f.top + f.height; ++y) {
      clear(frame + y * f.pitch * kWidth, f.left * kWidth);
      clear(frame + (y * f.pitch + f.left + f.width) * kWidth, right * kWidth);
    }
  }
}

// ---- one step -----------------------------------------------------------------------------------------------------

// Position of every stored weight in the source frame, and where each panel of source channels begins in each row.
struct StepStreams {
  int64_t panels;
  const int32_t* offset;   // [nnz]
  const int32_t* segment;  // [(panels + 1) * rows]
};

StepStreams index_step(const ConvChainArgs& a, const ChainStep& s, const Frame& source, Scratch& scratch) {
  const int64_t rows = a.values[s.target].channels, sources = source.channels / s.groups,
                taps = s.kernel_h * s.kernel_w;
  const int64_t columns = (min(a.values[s.target].width, kStreamVectors) - 1) * s.stride_w;
  const int64_t bytes = ((s.kernel_h - 1) * s.dilation_h + 1) * (columns + (s.kernel_w - 1) * s.dilation_w + 1) *
                        kWidth * int64_t{sizeof(float)};
  const double per_channel = s.row_ptr[rows] / (static_cast<double>(rows) * max(1, sources));
  // Rows of a group read nothing of the others: they would look into every panel in vain.
  const int64_t panel = s.groups > 1 ? source.channels : panel_streams(bytes, per_channel);
  const int64_t panels = max(1, ceil_div(source.channels, panel));
  int32_t* offset = take<int32_t>(scratch, s.row_ptr[rows]);
  int32_t* segment = take<int32_t>(scratch, (panels + 1) * rows);
  int32_t* tap = take<int32_t>(scratch, taps);
  for (int64_t t = 0; t < taps; ++t)
    tap[t] = static_cast<int32_t>((source.top - s.pad_top + t / s.kernel_w * s.dilation_h) * source.pitch +
                                  source.left - s.pad_left + t % s.kernel_w * s.dilation_w);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = r / (rows / s.groups) * sources;
    for (int32_t k = s.row_ptr[r]; k < s.row_ptr[r + 1]; ++k)
      offset[k] = static_cast<int32_t>((first + s.col[k] / taps) * source.channel_stride) + tap[s.col[k] % taps];
    split_row(s.row_ptr, s.col, rows, r, sources * taps, panels, panel * taps, first * taps, segment);
  }
  return {panels, offset, segment};
}

struct ChainPanel {
  int64_t rows;
  Segments weights;
  const float* values;
  const int32_t* offset;
  const float* source;
  int64_t step;  // floats between the positions that neighbouring targets read
  bool begins, ends;
  const float* bias;      // [rows] or nullptr
  const float* residual;  // or nullptr; rows residual_pitch floats apart
  int64_t residual_pitch;
  float* target;  // rows target_pitch floats apart; holds the sums between panels
  int64_t target_pitch;
  float low, high;  // what the activation keeps a sum between
};

// V positions of every row: the sum over the row's weights of a panel, and in the last one what follows.
template <int V, bool kDense>
void chain_panel(const ChainPanel& panel) {
  constexpr int kChains = V <= 2 ? 4 : V <= 4 ? 2 : 1;
  const ChainPanel a = panel;
  const int64_t step = kDense ? kWidth : a.step;
  for (int64_t r = 0; r < a.rows; ++r) {
    int64_t k = a.weights.begin[r];
    const int64_t end = a.weights.end[r];
    if (k == end && !a.begins && !a.ends) continue;
    float* to = a.target + r * a.target_pitch;
    Vec acc[kChains][V];
    for (int i = 0; i < V; ++i) acc[0][i] = !a.begins ? load(to + i * kWidth) : a.bias ? broadcast(a.bias[r]) : Vec{};
    for (int c = 1; c < kChains; ++c)
      for (int i = 0; i < V; ++i) acc[c][i] = Vec{};
    for (; k + kChains <= end; k += kChains)
      for (int c = 0; c < kChains; ++c) {
        const Vec w = broadcast(a.values[k + c]);
        const float* s = a.source + a.offset[k + c] * kWidth;
        for (int i = 0; i < V; ++i) acc[c][i] += w * load(s + i * step);
      }
    for (; k < end; ++k) {
      const Vec w = broadcast(a.values[k]);
      const float* s = a.source + a.offset[k] * kWidth;
      for (int i = 0; i < V; ++i) acc[0][i] += w * load(s + i * step);
    }
    for (int c = 1; c < kChains; ++c)
      for (int i = 0; i < V; ++i) acc[0][i] += acc[c][i];
    if (a.ends) {
      const Vec low = broadcast(a.low), high = broadcast(a.high);
      if (a.residual)
        for (int i = 0; i < V; ++i) acc[0][i] += load(a.residual + r * a.residual_pitch + i * kWidth);
      for (int i = 0; i < V; ++i) {
        Vec z = acc[0][i];
        z = z < low ? low : z;  // a NaN stays one
        acc[0][i] = z > high ? high : z;
      }
    }
    for (int i = 0; i < V; ++i) store(to + i * kWidth, acc[0][i]);
  }
}

template <bool kDense>
void chain_panel(int64_t positions, const ChainPanel& panel) {
  switch (positions) {
    case 1:
      return chain_panel<1, kDense>(panel);
    case 2:
      return chain_panel<2, kDense>(panel);
    case 3:
      return chain_panel<3, kDense>(panel);
    case 4:
      return chain_panel<4, kDense>(panel);
    case 5:
      return chain_panel<5, kDense>(panel);
    case 6:
      return chain_panel<6, kDense>(panel);
    case 7:
      return chain_panel<7, kDense>(panel);
    default:
      return chain_panel<8, kDense>(panel);
  }
}

void run_step(const ChainStep& s, const StepStreams& streams, const Frame* frames, float* memory) {
  constexpr float kInfinity = __builtin_inff();
  const Frame &source = frames[s.source], &target = frames[s.target];
  const Frame* residual = s.residual < 0 ? nullptr : frames + s.residual;
  const int64_t rows = target.channels, strips = ceil_div(target.width, kStreamVectors);
  const float *values = floats(s.values), *bias = floats(s.bias);
  const float low = s.act == Activation::none ? -kInfinity : 0.f, high = s.act == Activation::relu6 ? 6.f : kInfinity;
  for (int64_t y = 0; y < target.height; ++y)
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t x = target.width * strip / strips, n = target.width * (strip + 1) / strips - x;
      for (int64_t q = 0; q < streams.panels; ++q) {
        const int32_t* segment = streams.segment + q * rows;
        const ChainPanel panel = {
            .rows = rows,
            .weights = {segment, segment + rows},
            .values = values,
            .offset = streams.offset,
            .source = memory + source.at + (y * s.stride_h * source.pitch + x * s.stride_w) * kWidth,
            .step = s.stride_w * kWidth,
            .begins = q == 0,
            .ends = q + 1 == streams.panels,
            .bias = bias,
            .residual =
                residual ? memory + residual->at + (residual->first() + y * residual->pitch + x) * kWidth : nullptr,
            .residual_pitch = residual ? residual->channel_stride * kWidth : 0,
            .target = memory + target.at + (target.first() + y * target.pitch + x) * kWidth,
            .target_pitch = target.channel_stride * kWidth,
            .low = low,
            .high = high,
        };
        s.stride_w == 1 ? chain_panel<true>(n, panel) : chain_panel<false>(n, panel);
      }
    }
}

}  // namespace

void conv_chain(const ConvChainArgs& a, const Exec& exec) {
  if (a.batch == 0) return;
  Scratch scratch;
  Frame* frames = take<Frame>(scratch, a.value_count);
  const PerThread<float> memory(scratch, exec.threads, place_values(a, frames, scratch));
  Places* places = take<Places>(scratch, a.value_count);
  for (int64_t v = 0; v < a.value_count; ++v)
    if (a.values[v].input || a.values[v].output) places[v] = pixel_places(frames[v], scratch);
  StepStreams* streams = take<StepStreams>(scratch, a.step_count);
  for (int64_t i = 0; i < a.step_count; ++i) streams[i] = index_step(a, a.steps[i], frames[a.steps[i].source], scratch);
  const int64_t chunks = ceil_div(a.batch, kWidth);

#pragma omp parallel num_threads(exec.threads)
  {
    float* mine = memory.mine();
    for (int64_t v = 0; v < a.value_count; ++v)
      if (!frames[v].inherited) clear_border(frames[v], mine + frames[v].at);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * kWidth, images = min(kWidth, a.batch - first);
      const auto frame = [&](int64_t v) { return mine + frames[v].at + frames[v].first() * kWidth; };
      for (int64_t v = 0; v < a.value_count; ++v)
        if (const ChainValue& value = a.values[v]; value.input)
          move_in(places[v], kWidth, frames[v].channel_stride, 0, value.channels, value.channels, value.channels_last,
                  Pixels{floats(value.input)}, first, images, frame(v));
      for (int64_t i = 0; i < a.step_count; ++i) {
        run_step(a.steps[i], streams[i], frames, mine);
        const int64_t v = a.steps[i].target;
        if (const ChainValue& value = a.values[v]; value.output)
          move_out(places[v], kWidth, frames[v].channel_stride, 0, value.channels, value.channels, value.channels_last,
                   frame(v), first, images, floats(value.output));
      }
    }
  }
}

}  // namespace spfde::cpu::SPFDE_ISA
