#include "planes.h"
#include "spfde/conv2d_geometry.h"
#include "spfde/workspace.h"
#include "stream.h"

namespace spfde::SPFDE_ISA {
namespace {

constexpr int64_t kChunkPositions = 512;  // positions per plane aimed at: planes of 100 channels fit in L2
constexpr int64_t kDotStrip = 128;        // positions per correlation: dY and eight shifted planes in L1

// How the batch is cut: images that share one set of planes, and the rows one task computes.
struct Cut {
  int64_t images, chunks, row_block, row_blocks;
};

Cut cut_work(const Conv2dGeometry& g, int64_t rows, int threads) {
  const int64_t fill = ceil_div(kChunkPositions, g.h.pitch * g.w.pitch);
  const int64_t images = max(1, min(fill, ceil_div(g.batch, threads)));
  const int64_t chunks = ceil_div(g.batch, images);
  const int64_t row_block = max(1, ceil_div(rows, max(1, ceil_div(threads, chunks))));
  return {images, chunks, row_block, ceil_div(rows, row_block)};
}

// Offsets of all stored weights into the source planes, and where each panel of source channels begins in each row.
struct Index {
  int64_t panels;
  const int32_t* offset;   // [nnz]
  const int32_t* segment;  // [(panels + 1) * rows]
};

Index index_streams(const Conv2dGeometry& g, const SourcePlanes& planes, const int32_t* row_ptr, const int32_t* col,
                    int64_t rows, int64_t strip, int threads) {
  if (planes.size > INT32_MAX) refuse_size("conv2d", planes.size);
  const int64_t taps = g.h.taps * g.w.taps;
  const int64_t source_group = g.source_channels / g.groups, row_group = rows / g.groups;
  const int64_t span = (strip + planes.max_shift) * int64_t{sizeof(float)} * g.slots;
  const int64_t panel = max(1, kPanelBytes / span);
  const int64_t panels = max(1, ceil_div(g.source_channels, panel));
  int32_t* offset = scratch<int32_t>(Scratch::offsets, row_ptr[rows] + taps);
  int32_t* segment = scratch<int32_t>(Scratch::segments, (panels + 1) * rows);
  int32_t* tap_offset = offset + row_ptr[rows];
  for (int64_t i = 0; i < g.h.taps; ++i)
    for (int64_t j = 0; j < g.w.taps; ++j) tap_offset[i * g.w.taps + j] = planes.tap_offset(g, i, j);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first_channel = r / row_group * source_group;
    int64_t base = first_channel * planes.channel_stride, column = 0;
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) {
      for (; col[k] >= column + taps; column += taps) base += planes.channel_stride;
      offset[k] = static_cast<int32_t>(base + tap_offset[col[k] - column]);
    }
    split_row(row_ptr, col, rows, r, panels, panel * taps, first_channel * taps, segment);
  }
  return {panels, offset, segment};
}

}  // namespace

// Per chunk of images: pad the source once, then per strip of positions keep a panel of channels in L1 while every
// row uses it; accumulators stay in registers over a row's weights of the panel.
void shifted_product(const ShiftedProductArgs& a) {
  const Conv2dGeometry& g = *a.geometry;
  const int64_t phases = g.h.target_phases * g.w.target_phases;
  const int64_t rows = g.target_channels * phases;
  if (g.batch == 0 || rows == 0 || g.h.target_length * g.w.target_length == 0) return;
  const Cut cut = cut_work(g, rows, a.threads);
  const SourcePlanes planes = source_planes(g, cut.images);
  const Index index = index_streams(g, planes, a.row_ptr, a.col, rows, kStrip, a.threads);
  const int64_t vectors = planes.positions / kWidth, strips = ceil_div(vectors, kStreamVectors);

#pragma omp parallel for schedule(static) collapse(2) num_threads(a.threads)
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk)
    for (int64_t block = 0; block < cut.row_blocks; ++block) {
      const int64_t begin = block * cut.row_block, end = min(rows, begin + cut.row_block);
      const int64_t first = chunk * cut.images, images = min(cut.images, g.batch - first);
      float* source = scratch<float>(Scratch::source, planes.size);
      float* target = scratch<float>(Scratch::target, (end - begin) * planes.positions);
      pack_source(g, planes, a.source, first, images, source);
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t v = vectors * s / strips, v_end = vectors * (s + 1) / strips;
        const AxpyStreams axpy = axpy_streams_for(v_end - v);
        for (int64_t p = 0; p < index.panels; ++p)
          for (int64_t r = begin; r < end; ++r) {
            const int32_t k = index.segment[p * rows + r], n = index.segment[(p + 1) * rows + r] - k;
            if (n == 0 && p > 0) continue;
            axpy(a.values + k, index.offset + k, n, 1, source + v * kWidth, p == 0, a.bias ? a.bias[r / phases] : 0.f,
                 target + (r - begin) * planes.positions + v * kWidth);
          }
      }
      for (int64_t r = begin; r < end; ++r)
        unpack_target(g, r, target + (r - begin) * planes.positions, first, images, a.target);
    }
}

// Per chunk of images: eight weights of a row at a time share each load of dY; threads own private sums, added in
// thread order.
void shifted_correlation(const ShiftedCorrelationArgs& a) {
  const Conv2dGeometry& g = *a.geometry;
  const int64_t rows = g.target_channels, nnz = a.row_ptr[rows];
  const bool empty = g.batch == 0 || g.h.grid * g.w.grid == 0;
  float* partial = scratch<float>(Scratch::partial, nnz * a.threads);
  double* partial_bias = scratch<double>(Scratch::bias, rows * a.threads);
  for (int64_t k = 0; k < nnz * a.threads; ++k) partial[k] = 0.f;
  for (int64_t r = 0; r < rows * a.threads; ++r) partial_bias[r] = 0.;

  if (!empty) {
    const Cut cut = cut_work(g, rows, a.threads);
    const SourcePlanes planes = source_planes(g, cut.images);
    const int64_t strip = min(kDotStrip / kWidth * kWidth, planes.positions);
    const Index index = index_streams(g, planes, a.row_ptr, a.col, rows, strip, a.threads);
    const int64_t tasks = cut.chunks * cut.row_blocks;
#pragma omp parallel for schedule(static, 1) num_threads(a.threads)
    for (int64_t worker = 0; worker < a.threads; ++worker) {
      float* dvalues = partial + worker * nnz;
      double* dbias = partial_bias + worker * rows;
      for (int64_t task = tasks * worker / a.threads; task < tasks * (worker + 1) / a.threads; ++task) {
        const int64_t begin = task % cut.row_blocks * cut.row_block, end = min(rows, begin + cut.row_block);
        const int64_t first = task / cut.row_blocks * cut.images, images = min(cut.images, g.batch - first);
        float* source = scratch<float>(Scratch::source, planes.size);
        float* target = scratch<float>(Scratch::target, (end - begin) * planes.positions);
        pack_source(g, planes, a.source, first, images, source);
        for (int64_t r = begin; r < end; ++r) {
          float* plane = target + (r - begin) * planes.positions;
          pack_target(g, planes, r, a.target, first, images, plane);
          if (a.dbias) dbias[r] += sum_plane(plane, planes.positions);
        }
        for (int64_t q = 0; q < planes.positions; q += strip)
          for (int64_t p = 0; p < index.panels; ++p)
            for (int64_t r = begin; r < end; ++r) {
              const int32_t k = index.segment[p * rows + r], n = index.segment[(p + 1) * rows + r] - k;
              dot_streams(target + (r - begin) * planes.positions + q, index.offset + k, n, 1, source + q,
                          min(strip, planes.positions - q), dvalues + k);
            }
      }
    }
  }
  for (int64_t k = 0; k < nnz; ++k) {
    float sum = 0.f;
    for (int64_t t = 0; t < a.threads; ++t) sum += partial[t * nnz + k];
    a.dvalues[k] = sum;
  }
  for (int64_t k = nnz; k < a.capacity; ++k) a.dvalues[k] = 0.f;
  if (a.dbias)
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.;
      for (int64_t t = 0; t < a.threads; ++t) sum += partial_bias[t * rows + r];
      a.dbias[r] = static_cast<float>(sum);
    }
}

}  // namespace spfde::SPFDE_ISA
