#include "conv2d_chunk.h"
#include "cpu/float32.h"
#include "per_thread.h"
#include "stream_blocks.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

constexpr int64_t kBlockDotFloats = 2 * kStrip;  // positions x lanes that one visit to a block row correlates

// What the three products share: the forward's geometry, with rows padded to whole blocks.
struct BlockConv {
  const Conv2dGeometry& geometry;
  int64_t height, width, block_rows, rows;  // rows padded
  Layout layout;
  bool empty;

  BlockConv(const Conv2dGeometry& geometry, const Conv2dShape& shape, const BlockIndex& index, int threads,
            Scratch& scratch)
      : geometry(geometry), height(index.height), width(index.width) {
    block_rows = ceil_div(shape.out_channels, height);
    rows = block_rows * height;
    empty = shape.batch == 0 || rows == 0 || shape.out_h * shape.out_w == 0;
    if (!empty) layout = lay_out(geometry, choose_lanes(geometry), rows, height, threads, scratch);
  }

  // Rows [begin, end) of dY, zero where there is no such channel.
  void pack_dy(const float* dy, bool channels_last, int64_t first, int64_t images, int64_t begin, int64_t end,
               float* packed) const {
    const int64_t size = layout.planes.target_size, real = min(end, geometry.target_channels);
    pack_target(geometry, layout, dy, channels_last, first, images, begin, real, packed);
    clear(packed + (real - begin) * size, (end - real) * size);
  }

  BlockPanel panel(const Streams& streams, int64_t q, int64_t begin, int64_t end, const float* values) const {
    const int32_t* segments = streams.segment + q * block_rows + begin / height;
    return {(end - begin) / height, {segments, segments + block_rows}, height, width, values, streams.offset,
            layout.planes.lanes};
  }
};

}  // namespace

void conv2d_blocks(const Conv2dBlocksArgs& a, const Conv2dGeometry& g, const Exec& exec) {
  Scratch scratch;
  const BlockConv conv(g, a.shape, a.index, exec.threads, scratch);
  if (conv.empty) return;
  const Layout& l = conv.layout;
  const Planes& p = l.planes;
  const int64_t vectors = p.run / kWidth, strips = ceil_div(vectors, kBlockVectors);
  const Streams streams = index_streams(g, p, a.index.unit_ptr, a.index.unit_col, conv.block_rows, conv.width, 1,
                                        min(p.run, kBlockStrip), exec.threads, scratch);
  const PerThread<float> sources(scratch, exec.threads, p.source_size);
  const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);
  const float* bias = floats(a.bias);

#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t share = 0; share < l.shares; ++share) {
      const int64_t begin = share * l.share, end = min(conv.rows, begin + l.share);
      const int64_t real = min(end, g.target_channels);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      pack_source(g, l, floats(a.x), a.x_channels_last, first, images, 0, g.source_channels, source);
      for (int64_t run = 0; run < p.runs; ++run)
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
          float* sums = target + run * p.target_run + v * kWidth;
          for (int64_t q = 0; q < streams.panels; ++q)
            block_axpy_panel(v_end - v, conv.panel(streams, q, begin, end, floats(a.values)),
                             source + run * p.source_run + v * kWidth,
                             {q == 0 ? nullptr : sums, p.target_size, sums, p.target_size,
                              bias ? bias + begin : nullptr, real - begin});
        }
      unpack_target(g, l, target, begin, real, a.y_channels_last, first, images, floats(a.y));
    }
}

// The forward's streams run backwards: dX gathers in the source planes, a panel of channels at a time.
void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& a, const Conv2dGeometry& g, const Exec& exec) {
  Scratch scratch;
  const BlockConv conv(g, a.shape, a.index, exec.threads, scratch);
  if (conv.empty) {
    clear(floats(a.dx), g.batch * g.source_channels * g.h.source_length * g.w.source_length);
    return;
  }
  const Layout& l = conv.layout;
  const Planes& p = l.planes;
  const int64_t vectors = p.run / kWidth, strips = ceil_div(vectors, kBlockVectors);
  const Streams streams = index_streams(g, p, a.index.unit_ptr, a.index.unit_col, conv.block_rows, conv.width, 1,
                                        min(p.run, kBlockStrip), exec.threads, scratch);
  const int64_t shares = min(streams.panels, ceil_div(exec.threads, p.chunks));
  const PerThread<float> sources(scratch, exec.threads, p.source_size);
  const PerThread<float> targets(scratch, exec.threads, conv.rows * p.target_size);

#pragma omp parallel for schedule(static) collapse(2) num_threads(exec.threads)
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
    for (int64_t share = 0; share < shares; ++share) {
      const int64_t q_begin = streams.panels * share / shares, q_end = streams.panels * (share + 1) / shares;
      const int64_t begin = q_begin * streams.panel, end = min(g.source_channels, q_end * streams.panel);
      const int64_t first = chunk * p.images, images = min(p.images, g.batch - first);
      float *source = sources.mine(), *target = targets.mine();
      conv.pack_dy(floats(a.dy), a.dy_channels_last, first, images, 0, conv.rows, target);
      clear(source + begin * p.channel_stride * p.lanes, (end - begin) * p.channel_stride * p.lanes);
      for (int64_t run = 0; run < p.runs; ++run)
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
          for (int64_t q = q_begin; q < q_end; ++q)
            block_scatter_panel(v_end - v, conv.panel(streams, q, 0, conv.rows, floats(a.values)),
                                source + run * p.source_run + v * kWidth, target + run * p.target_run + v * kWidth,
                                p.target_size);
        }
      unpack_source(g, l, source, begin, end, a.dx_channels_last, first, images, floats(a.dx));
    }
}

// Threads own private sums over their share of the chunks, added in thread order.
void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& a, const Conv2dGeometry& g, const Exec& exec) {
  Scratch scratch;
  const BlockConv conv(g, a.shape, a.index, exec.threads, scratch);
  const int64_t size = a.index.unit_ptr[conv.block_rows] * conv.height, channels = g.target_channels;
  float* partial = take<float>(scratch, size * exec.threads);
  double* partial_bias = take<double>(scratch, channels * exec.threads);
  for (int64_t k = 0; k < size * exec.threads; ++k) partial[k] = 0.f;
  for (int64_t r = 0; r < channels * exec.threads; ++r) partial_bias[r] = 0.;

  if (!conv.empty) {
    const Layout& l = conv.layout;
    const Planes& p = l.planes;
    const int64_t vectors = p.run / kWidth, strips = ceil_div(p.run, kBlockDotFloats);
    const int64_t together = max(1, min(p.runs, kBlockDotFloats / p.run));
    const Streams streams = index_streams(g, p, a.index.unit_ptr, a.index.unit_col, conv.block_rows, conv.width,
                                          together, min(p.run, kBlockDotFloats), exec.threads, scratch);
    const PerThread<float> sources(scratch, exec.threads, p.source_size);
    const PerThread<float> targets(scratch, exec.threads, l.share * p.target_size);
    const int64_t tasks = p.chunks * l.shares;
#pragma omp parallel for schedule(static, 1) num_threads(exec.threads)
    for (int64_t worker = 0; worker < exec.threads; ++worker) {
      float* dvalues = partial + worker * size;
      double* dbias = partial_bias + worker * channels;
      for (int64_t task = tasks * worker / exec.threads; task < tasks * (worker + 1) / exec.threads; ++task) {
        const int64_t begin = task % l.shares * l.share, end = min(conv.rows, begin + l.share);
        const int64_t first = task / l.shares * p.images, images = min(p.images, g.batch - first);
        float *source = sources.mine(), *target = targets.mine();
        pack_source(g, l, floats(a.x), a.x_channels_last, first, images, 0, g.source_channels, source);
        conv.pack_dy(floats(a.dy), a.dy_channels_last, first, images, begin, end, target);
        if (a.dbias)
          for (int64_t r = begin; r < min(end, channels); ++r)
            dbias[r] += sum_in_double(target + (r - begin) * p.target_size, p.target_size);
        for (int64_t run = 0; run < p.runs; run += together)
          for (int64_t s = 0; s < strips; ++s) {
            const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
            for (int64_t q = 0; q < streams.panels; ++q)
              block_dot_panel(
                  conv.panel(streams, q, begin, end, nullptr),
                  {source + run * p.source_run + v * kWidth, target + run * p.target_run + v * kWidth, p.target_size,
                   (v_end - v) * kWidth, min(together, p.runs - run), p.source_run, p.target_run, dvalues});
          }
      }
    }
  }
  add_partials(partial, size, exec.threads, a.capacity * conv.height * conv.width, floats(a.dvalues));
  if (a.dbias) add_partials(partial_bias, channels, exec.threads, channels, floats(a.dbias));
}

}  // namespace spfde::cpu::SPFDE_ISA
