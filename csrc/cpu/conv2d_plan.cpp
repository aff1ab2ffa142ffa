// Places, taps and phases of one direction, and the panel they make together.
#include "cpu/conv2d_plan.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace sparsekern {

Axis forward_axis(const ConvShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], padding = shape.padding[axis], dilation = shape.dilation[axis], taps = shape.kernel[axis];
  const int64_t reach = shape.out[axis] + (taps - 1) * dilation / stride;  // places per remainder
  std::vector<int64_t> remainders;                                         // that some tap reads
  const auto slot_of = [&](int64_t i) { return std::find(remainders.begin(), remainders.end(), i % stride) - remainders.begin(); };
  Axis a;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t slot = slot_of(t * dilation);
    if (slot == static_cast<int64_t>(remainders.size())) remainders.push_back(t * dilation % stride);
    a.tap.push_back(slot * reach + t * dilation / stride);
  }
  a.phase.assign(taps, 0);
  a.step = stride;
  a.length = static_cast<int64_t>(remainders.size()) * reach;
  for (int64_t i = 0; i < shape.in[axis]; ++i) {
    const int64_t slot = slot_of(i + padding), place = (i + padding) / stride;
    a.place.push_back(slot < static_cast<int64_t>(remainders.size()) && place < reach ? slot * reach + place : -1);
  }
  a.steps = {shape.out[axis]};
  return a;
}

// Input i gets tap t of output (i + padding - t * dilation) / stride where that divides.
Axis input_grad_axis(const ConvShape& shape, int axis) {
  const int64_t stride = shape.stride[axis], padding = shape.padding[axis], dilation = shape.dilation[axis], taps = shape.kernel[axis];
  Axis a;
  a.between = stride;
  for (int64_t p = 0; p < std::min(stride, shape.in[axis]); ++p) a.steps.push_back((shape.in[axis] - p + stride - 1) / stride);
  const int64_t phases = static_cast<int64_t>(a.steps.size());
  int64_t lead = 0;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t phase = ((t * dilation - padding) % stride + stride) % stride;
    a.phase.push_back(phase < phases ? phase : -1);  // else it only ever meets the padding
    a.tap.push_back((phase + padding - t * dilation) / stride);
    if (phase < phases) lead = std::max(lead, -a.tap.back());
  }
  a.length = 1;
  for (int64_t t = 0; t < taps; ++t) {
    a.tap[t] += lead;
    if (a.phase[t] >= 0) a.length = std::max(a.length, a.tap[t] + a.steps[a.phase[t]]);
  }
  for (int64_t i = 0; i < shape.out[axis]; ++i) a.place.push_back(i + lead < a.length ? i + lead : -1);
  return a;
}

int64_t lanes_for(int64_t images, int64_t width, int64_t elements) {
  constexpr int64_t kMost = int64_t{1} << 22;  // of a panel: more would come from memory, not from a cache
  const auto waste = [](int64_t n) { return static_cast<double>((n + 15) / 16 * 16) / static_cast<double>(std::max<int64_t>(n, 1)); };
  return elements <= kMost / 16 && waste(images) * 1.2 < waste(width) ? 16 : 1;
}

namespace {

void find_runs(Panel& p, int64_t width) {
  for (int64_t row = 0; row < p.positions; row += width)
    for (int64_t first = row; first < std::min(row + p.step, row + width); ++first)
      for (int64_t i = first; i < row + width; i += p.step) {
        if (p.place[i] < 0) continue;
        if (!p.runs.empty() && p.runs.back().from + p.runs.back().count * p.step == i && p.runs.back().to + p.runs.back().count == p.place[i])
          ++p.runs.back().count;
        else p.runs.push_back({static_cast<int32_t>(i), p.place[i], 1});
      }
}

}  // namespace

Panel make_panel(const char* op, const Axis& rows, const Axis& columns, int64_t channels, int64_t lanes) {
  Panel p;
  p.lanes = lanes;
  // A kernel of one column reads whole lines if rows begin on one.
  p.row = lanes == 1 && columns.tap.size() == 1 ? (columns.length + 15) / 16 * 16 : columns.length * lanes;
  p.channels = channels;
  p.positions = static_cast<int64_t>(rows.place.size() * columns.place.size());
  const double most = std::max(static_cast<double>(rows.length) * p.row * channels, static_cast<double>(p.positions));
  TORCH_CHECK_VALUE(most < (int64_t{1} << 31) - 64, op, ": x: expected images of less than 2^31 elements with their padding, got ", most);
  p.channel = rows.length * p.row;
  p.place.reserve(p.positions);
  for (const int64_t r : rows.place)
    for (const int64_t c : columns.place) p.place.push_back(r < 0 || c < 0 ? -1 : static_cast<int32_t>(r * p.row + c * lanes));
  p.step = columns.step;
  if (lanes == 1) find_runs(p, static_cast<int64_t>(columns.place.size()));
  return p;
}

Panel plain_panel(const char* op, int64_t rows, int64_t columns, int64_t channels, int64_t lanes) {
  Axis down, across;
  for (int64_t i = 0; i < rows; ++i) down.place.push_back(i);
  for (int64_t i = 0; i < columns; ++i) across.place.push_back(i);
  down.length = rows;
  across.length = lanes == 1 ? (columns + 15) / 16 * 16 : columns;
  return make_panel(op, down, across, channels, lanes);
}

}  // namespace sparsekern
