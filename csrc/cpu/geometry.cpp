#include "cpu/geometry.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace spfde::cpu {
namespace {

struct AxisTables {
  std::vector<int64_t> source_first, target_first, source_phase, shift;
};

struct Owned {
  Conv2dGeometry view{};
  AxisTables h, w;
  std::vector<int64_t> plane;
};

// Rounds towards plus infinity, also for negative a.
int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// The smallest pitch at which a read past the end of a row lands on the next row's leading padding.
void set_pitch(Axis& axis, const AxisTables& tables) {
  axis.max_shift = *std::max_element(tables.shift.begin(), tables.shift.end());
  axis.pitch = std::max<int64_t>(axis.grid, 1);
  for (int64_t p = 0; p < axis.source_phases; ++p) {
    int64_t reach = -1;  // last element that a target position reads
    for (int64_t t = 0; t < axis.taps; ++t)
      if (tables.source_phase[t] == p) reach = std::max(reach, axis.grid - 1 + tables.shift[t]);
    if (reach < 0) continue;
    const int64_t first = std::max<int64_t>(0, ceil_div(-tables.source_first[p], axis.source_step));
    const int64_t after = ceil_div(axis.source_length - tables.source_first[p], axis.source_step);
    const int64_t end = std::min(std::max(first, after), reach + 1);
    axis.pitch = std::max({axis.pitch, end, reach + 1 - first});
  }
}

Axis finish(Axis axis, AxisTables& tables) {
  axis.source_phases = static_cast<int64_t>(tables.source_first.size());
  axis.target_phases = static_cast<int64_t>(tables.target_first.size());
  axis.taps = static_cast<int64_t>(tables.shift.size());
  axis.source_first = tables.source_first.data();
  axis.target_first = tables.target_first.data();
  axis.source_phase = tables.source_phase.data();
  axis.shift = tables.shift.data();
  set_pitch(axis, tables);
  return axis;
}

Axis forward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                  AxisTables& tables) {
  Axis axis{};
  axis.source_length = in;
  axis.source_step = stride;
  axis.target_length = out;
  axis.target_step = 1;
  axis.grid = out;
  for (int64_t p = 0; p < stride; ++p) tables.source_first.push_back(p - pad);
  tables.target_first = {0};
  for (int64_t t = 0; t < kernel; ++t) {
    tables.source_phase.push_back(t * dilation % stride);
    tables.shift.push_back(t * dilation / stride);
  }
  return finish(axis, tables);
}

// With i the input index and o the output index, i + pad = o * stride + t * dilation. Write i + pad = m * stride + p:
// only taps with t * dilation = p (mod stride) reach it, from o = m - t * dilation / stride.
Axis input_grad_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                     AxisTables& tables) {
  Axis axis{};
  const int64_t m_first = pad / stride;
  const int64_t lead = std::max<int64_t>(0, (kernel - 1) * dilation / stride - m_first);
  axis.source_length = out;
  axis.source_step = 1;
  axis.target_length = in;
  axis.target_step = stride;
  axis.grid = (pad + in - 1) / stride - m_first + 1;
  tables.source_first = {-lead};
  for (int64_t p = 0; p < stride; ++p) tables.target_first.push_back(m_first * stride + p - pad);
  for (int64_t t = 0; t < kernel; ++t) {
    tables.source_phase.push_back(0);
    tables.shift.push_back(m_first + lead - t * dilation / stride);
  }
  return finish(axis, tables);
}

std::shared_ptr<const Conv2dGeometry> share(std::shared_ptr<Owned> owned, const Conv2dShape& shape) {
  Conv2dGeometry& g = owned->view;
  g.batch = shape.batch;
  g.groups = shape.groups;
  owned->plane.assign(g.h.source_phases * g.w.source_phases, -1);
  for (int64_t i = 0; i < g.h.taps; ++i)
    for (int64_t j = 0; j < g.w.taps; ++j)
      owned->plane[g.h.source_phase[i] * g.w.source_phases + g.w.source_phase[j]] = 0;
  for (int64_t& plane : owned->plane)
    if (plane == 0) plane = g.planes++;
  g.plane = owned->plane.data();
  return {owned, &g};
}

std::shared_ptr<const Conv2dGeometry> forward_geometry(const Conv2dShape& s) {
  auto owned = std::make_shared<Owned>();
  Conv2dGeometry& g = owned->view;
  g.h = forward_axis(s.in_h, s.out_h, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h, owned->h);
  g.w = forward_axis(s.in_w, s.out_w, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w, owned->w);
  g.source_channels = s.in_channels;
  g.target_channels = s.out_channels;
  return share(owned, s);
}

std::shared_ptr<const Conv2dGeometry> input_grad_geometry(const Conv2dShape& s) {
  auto owned = std::make_shared<Owned>();
  Conv2dGeometry& g = owned->view;
  g.h = input_grad_axis(s.in_h, s.out_h, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h, owned->h);
  g.w = input_grad_axis(s.in_w, s.out_w, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w, owned->w);
  g.source_channels = s.out_channels;
  g.target_channels = s.in_channels;
  return share(owned, s);
}

}  // namespace

void refuse_planes(int64_t positions) {
  throw std::length_error(
      "spfde: conv2d: expected the padded planes of an image to hold fewer than 2^31 positions, got " +
      std::to_string(positions) + ", try smaller images or kernel = 'dense'");
}

Conv2dPlan::Conv2dPlan(const Conv2dShape& shape)
    : shape_(shape), forward_(forward_geometry(shape)), input_grad_(input_grad_geometry(shape)) {}

}  // namespace spfde::cpu
