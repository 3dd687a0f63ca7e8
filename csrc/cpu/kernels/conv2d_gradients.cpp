// Both gradients of a convolution from one copy of dY: the planes that the input gradient reads hold it with padding
// around, and the weight gradient reads the same rows between.
#include "conv2d_grouped.h"
#include "conv2d_products.h"
#include "norm_gradient.h"
#include "per_thread.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// Whether the planes of the input gradient hold all of dY: outputs that read nothing but padding have no place there.
bool holds_all(const Axis& axis) { return axis.source_length - axis.source_first[0] <= axis.pitch; }

// Whether rows of dY lie in the planes of the input gradient as the weight gradient wants them, threads have chunks of
// their own, and the planes are small enough for a chunk's dY to be near still when it is read again.
bool packs_dy_once(const Conv2dGeometry& dx, const ShiftedCorrelationArgs& weight, int threads) {
  constexpr int64_t kNear = 96;
  const Conv2dGeometry& dw = weight.geometry;
  if (takes_groups(dw, weight.source_channels_last, weight.target_channels_last)) return false;
  if (dw.batch == 0 || dw.h.grid * dw.w.grid == 0 || dx.target_channels > kNear || dw.target_channels > kNear)
    return false;
  if (!holds_all(dx.h) || !holds_all(dx.w)) return false;
  const int64_t lanes = choose_lanes(dw);
  if (lanes == 1 || lanes != choose_lanes(dx) || ceil_div(dw.batch, lanes) < threads) return false;
  return dw.w.pitch > dw.w.grid || dx.w.pitch == dw.w.grid;  // else a run of dY is longer than a row
}

}  // namespace

// Vectors must not cross channels, so tiny images would be packed value by value.
bool gradients_take_norm(const Conv2dGeometry& input, const ShiftedCorrelationArgs& weight, int threads) {
  const Conv2dGeometry& g = weight.geometry;
  const int64_t together = weight.target_channels_last ? g.target_channels : g.h.target_length * g.w.target_length;
  return together >= kWidth && packs_dy_once(input, weight, threads);
}

void shifted_gradients(const ShiftedGradientsArgs& a, const Exec& exec) {
  const ShiftedProductArgs& dx = a.input;
  const ShiftedCorrelationArgs& dw = a.weight;
  const Conv2dGeometry &gx = dx.geometry, &gw = dw.geometry;
  if (!packs_dy_once(gx, dw, exec.threads)) {
    shifted_product(dx, exec);
    return shifted_correlation(dw, exec);
  }
  const int64_t phases = gx.h.target_phases * gx.w.target_phases, dx_rows = gx.target_channels * phases;
  const int64_t rows = gw.target_channels;
  Scratch scratch;
  const PrivateSums sums(dw, exec.threads, scratch);
  const Layout lx = lay_out(gx, choose_lanes(gx), dx_rows, phases, exec.threads, scratch);
  const Layout lw = lay_out(gw, choose_lanes(gw), rows, 1, exec.threads, scratch);
  const Planes &px = lx.planes, &pw = lw.planes;
  const ChunkProduct product(dx, px, dx_rows, exec.threads, scratch);
  const ChunkCorrelation correlation(dw, pw, exec.threads, scratch);
  const int64_t dy_pitch = px.channel_stride * px.lanes;
  const int64_t dy_first = -(gx.h.source_first[0] * gx.w.pitch + gx.w.source_first[0]) * px.lanes;
  const PerThread<float> dys(scratch, exec.threads, px.source_size);
  const PerThread<float> others(scratch, exec.threads, max(dx_rows * px.target_size, pw.source_size));

#pragma omp parallel for schedule(static, 1) num_threads(exec.threads)
  for (int64_t worker = 0; worker < exec.threads; ++worker) {
    double* dbias = sums.dbias + worker * rows;
    float *dy = dys.mine(), *other = others.mine();  // dX, then X
    for (int64_t c = pw.chunks * worker / exec.threads; c < pw.chunks * (worker + 1) / exec.threads; ++c) {
      const int64_t first = c * pw.images, images = min(pw.images, gw.batch - first);
      if (a.norm)
        pack_gradient(gx, lx, *a.norm, first, images, dy);
      else
        pack_source(gx, lx, dx.source, dx.source_channels_last, first, images, 0, rows, dy);
      product.run(0, dx_rows, dy, other);
      unpack_target(gx, lx, other, 0, dx_rows, dx.target_channels_last, first, images, dx.target);
      pack_source(gw, lw, dw.source, dw.source_channels_last, first, images, 0, gw.source_channels, other);
      if (dw.dbias)  // with the padding, which adds zeros
        for (int64_t r = 0; r < rows; ++r) dbias[r] += sum_in_double(dy + r * dy_pitch, dy_pitch);
      correlation.run(0, rows, other, dy + dy_first, px.source_run, dy_pitch, sums.dvalues + worker * sums.weights);
    }
  }
  sums.add(dw, correlation.streams);
}

}  // namespace spfde::cpu::SPFDE_ISA
