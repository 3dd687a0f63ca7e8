#include "cpu/panel_order.h"

#include <omp.h>

#include <algorithm>

#include "cpu/isa.h"

namespace spfde::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(row within the share, panel, weight) for the stored weights of rows [begin, end).
template <typename Body>
void for_each_weight(const PanelCut& cut, const int32_t* row_ptr, const int32_t* col, int64_t begin, int64_t end,
                     Body body) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t panel = 0, limit = cut.width;
    for (int32_t k = row_ptr[r]; k < row_ptr[r + 1]; ++k) {
      for (; col[k] >= limit; limit += cut.width) ++panel;
      body(r - begin, panel, k);
    }
  }
}

// A panel's visits, by falling weights and then by row. weights: of each row, at most `most`; replaced by the place of
// its first one. places: [most + 2] scratch. Returns the place after the last weight.
int32_t sort_visits(int32_t* weights, int64_t rows, int32_t start, int64_t most, int32_t* places, int32_t* visits) {
  std::fill_n(places, most + 2, 0);
  for (int64_t r = 0; r < rows; ++r) ++places[most - weights[r] + 1];
  for (int64_t n = 0; n <= most; ++n) places[n + 1] += places[n];
  for (int64_t r = 0; r < rows; ++r) visits[places[most - weights[r]]++] = static_cast<int32_t>(r | weights[r] << 16);
  for (int64_t i = 0; i < rows; ++i) {
    const uint32_t visit = visits[i];
    weights[visit & 0xffff] = start;
    start += static_cast<int32_t>(visit >> 16);
  }
  return start;
}

}  // namespace

PanelCut panel_cut(int64_t rows, int64_t cols, int64_t room, int64_t height) {
  constexpr int64_t kRows = 512;         // whose sums stay in L2
  constexpr int64_t kTogether = 4;       // shares are a multiple of it, for as many threads
  constexpr int64_t kWorthSharing = 64;  // rows
  constexpr double kMany = 0.15;         // weights of a panel of 64 columns x 128 lanes, against its visits
  const double density = static_cast<double>(room) / std::max<int64_t>(1, rows * cols);
  const bool long_streams = kernels().lanes > 8;
  // With eight lanes to a vector 32 KB of streams, of 64 lanes or (see linear.h) of 32; 64 KB where a visit would find
  // hardly any weight. Streams of twice the lanes are worth panels of twice the size, but where weights are many.
  const int64_t width = height > 1 || density < 0.03       ? 512
                        : density < 0.08                   ? 256
                        : density < kMany || !long_streams ? 128
                                                           : 64;
  const int64_t count =
      rows * height < kTogether * kWorthSharing ? 1 : ceil_div(rows * height, kTogether * kRows) * kTogether;
  const int64_t share = std::max<int64_t>(1, ceil_div(rows, count));
  return {share, ceil_div(rows, share), width, std::max<int64_t>(1, ceil_div(cols, width))};
}

void write_panel_order(const PanelCut& cut, int64_t rows, const int32_t* row_ptr, const int32_t* col,
                       const int32_t* perm, const PanelArrays& out, int threads) {
  const int64_t panels = cut.panels, most = std::min(cut.share, rows);
  int64_t longest = 0;  // weights of a row: columns may repeat
  for (int64_t r = 0; r < rows; ++r) longest = std::max<int64_t>(longest, row_ptr[r + 1] - row_ptr[r]);
  const int64_t each = panels * most + longest + 2;
  threads = static_cast<int>(std::clamp<int64_t>(cut.shares, 1, threads));
  Scratch scratch;
  int32_t* all = take<int32_t>(scratch, threads * each);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t s = 0; s < cut.shares; ++s) {
    const int64_t begin = s * cut.share, end = std::min(rows, begin + cut.share), n = end - begin;
    int32_t* weights = all + omp_get_thread_num() * each;  // [panels, n]: how many, then the next one's place
    int32_t* places = weights + panels * most;
    std::fill_n(weights, panels * n, 0);
    for_each_weight(cut, row_ptr, col, begin, end, [&](int64_t r, int64_t p, int32_t) { ++weights[p * n + r]; });
    int32_t start = row_ptr[begin];
    for (int64_t p = 0; p < panels; ++p) {
      out.start[s * panels + p] = start;
      start = sort_visits(weights + p * n, n, start, longest, places, out.visits + begin * panels + p * n);
    }
    for_each_weight(cut, row_ptr, col, begin, end, [&](int64_t r, int64_t p, int32_t k) {
      const int32_t at = weights[p * n + r]++;
      out.offset[at] = static_cast<int16_t>(col[k] - p * cut.width);
      out.slot[at] = perm ? perm[k] : k;
    });
  }
  out.start[cut.shares * panels] = row_ptr[rows];
}

PanelOrder make_panel_order(const PanelCut& cut, int64_t rows, const int32_t* row_ptr, const int32_t* col,
                            const int32_t* perm, int threads, Scratch& scratch) {
  const int64_t nnz = row_ptr[rows];
  const PanelArrays out{take<int32_t>(scratch, cut.shares * cut.panels + 1), take<int32_t>(scratch, cut.panels * rows),
                        take<int16_t>(scratch, nnz), take<int32_t>(scratch, nnz)};
  write_panel_order(cut, rows, row_ptr, col, perm, out, threads);
  return {cut, out.start, out.visits, out.offset, out.slot};
}

}  // namespace spfde::cpu
