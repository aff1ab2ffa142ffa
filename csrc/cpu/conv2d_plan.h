// The geometry of a sparse convolution as its kernels see it: panels of padded planes, and one list of taps per output plane.
//
// A panel holds 1 or 16 images ("lanes") as [channel][row][column][lane] with the zeros of the padding in it. With a stride,
// rows and columns are sorted by their remainder, so that neighbouring outputs always read neighbouring places. An output at
// (i, j) is then the sum over its list of value * panel[at + i * row + j * lanes], for every stride, padding and dilation.
// The input gradient is the same with the output gradient in the panel; under a stride each remainder of an input position
// is a plane of its own ("phase") with its own list.
#pragma once
#include <c10/util/ArrayRef.h>

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/csr_pattern.h"
#include "cpu/isa.h"

namespace sparsekern {

struct ConvShape {
  int64_t images = 0, groups = 1;
  int64_t channels = 0, outputs = 0;  // planes of x and of y
  int64_t in[2] = {}, out[2] = {};    // rows and columns of x and of y
  std::array<int64_t, 4> y = {};               // the shape of y before rows are joined
  int64_t kernel[2] = {}, stride[2] = {}, padding[2] = {}, dilation[2] = {};
};

// One direction, rows or columns.
struct Axis {
  int64_t length = 0;               // places in a panel
  std::vector<int64_t> place;       // [positions]: place of each position that comes in, or -1
  std::vector<int64_t> tap, phase;  // [kernel]: place a tap reads for output 0 of its phase; the phase it belongs to, or -1: none
  std::vector<int64_t> steps;       // [phases]: outputs of each phase
  int64_t between = 1;              // outputs from one of a phase to the next
};

// Places one after the other in the plane and in the panel.
struct Run {
  int32_t from, to, count;
};

// Where the positions of a plane lie in a panel, in elements.
struct Panel {
  int64_t lanes = 1, row = 0, channel = 0;                  // row and channel: distances
  int64_t channels = 0, positions = 0;                      // of the tensor that comes in
  std::vector<int32_t> place;                               // [positions], -1: not needed
  std::vector<Run> runs;                                    // the same, where lanes = 1
  int64_t size() const { return channels * channel + 16; }  // 16: the last row may be read past its end
};

template <class A>
struct Tap {
  int32_t at;
  A value;
};

// Lists of taps: list l is [begin[l], begin[l + 1]).
template <class A>
struct Taps {
  std::vector<int64_t> begin;
  std::vector<Tap<A>> taps;
};

// Where one phase of an output plane lies in it.
struct OutputPhase {
  int64_t row, column, rows, columns;
};

// What the products of a call share. Units of work are blocks of `block` output planes of one panel, `blocks` to a panel.
template <class T>
struct ProductJob {
  const Panel* panel = nullptr;
  const T* in = nullptr;
  int64_t images = 0, in_image = 0;
  const int64_t* begin = nullptr;  // lists: output plane * phases + phase
  const Tap<Arith<T>>* taps = nullptr;
  const T* bias = nullptr;
  T* out = nullptr;
  int64_t out_image = 0, out_plane = 0, out_width = 0, row_step = 1, column_step = 1;
  std::vector<OutputPhase> phases;
  int64_t planes = 0, block = 0, blocks = 0;
  int64_t band = 0;          // elements of a band of finished rows
  int64_t rows_at_once = 0;  // output rows whose part of the panel stays in L2
};

struct DotGeometry {
  int64_t row = 0;                // of the panel
  int64_t rows = 0, vectors = 0;  // of a plane of the output gradient
  int tail = 16;                  // lanes in use in the last vector of a row
};

// What the dot products of a call share. Units of work are blocks of output planes of one chunk of images.
template <class T>
struct WeightJob {
  const Panel *panel = nullptr, *plain = nullptr;  // of x and of grad_y
  const T *x = nullptr, *grad_y = nullptr;
  int64_t images = 0, x_image = 0, grad_image = 0;
  const int64_t* begin = nullptr;
  const Tap<Arith<T>>* taps = nullptr;
  double* partial = nullptr;  // [chunks, nnz]
  DotGeometry geometry;
  int64_t outputs = 0, block = 0, blocks = 0;
  int64_t chunk = 0;  // images
  int64_t reach = 0;  // elements of the panel worked at a time
};

Axis forward_axis(const ConvShape& shape, int axis);
Axis input_grad_axis(const ConvShape& shape, int axis);

// 16 images at once, or one: what wastes fewer lanes at rows of `width` outputs. A rule of the shape alone, so that
// results do not depend on the machine's mood.
int64_t lanes_for(int64_t images, int64_t width);

Panel make_panel(const char* op, const Axis& rows, const Axis& columns, int64_t channels, int64_t lanes);
Panel plain_panel(const char* op, int64_t rows, int64_t columns, int64_t channels, int64_t lanes);  // rows filled up to whole vectors

// One list per output plane; values are 0 where there are none.
template <class A, class T>
Taps<A> forward_taps(const ConvShape& shape, const CsrPattern& pattern, const Axis& rows, const Axis& columns, const Panel& panel, const T* values) {
  const int64_t taps = shape.kernel[0] * shape.kernel[1], per_group = shape.channels / shape.groups, rows_per_group = shape.outputs / shape.groups;
  std::vector<int32_t> at(pattern.cols);
  for (int64_t c = 0; c < per_group; ++c)
    for (int64_t k = 0; k < taps; ++k)
      at[c * taps + k] =
          static_cast<int32_t>(c * panel.channel + rows.tap[k / shape.kernel[1]] * panel.row + columns.tap[k % shape.kernel[1]] * panel.lanes);
  Taps<A> lists;
  lists.begin.assign(pattern.crow, pattern.crow + pattern.rows + 1);
  lists.taps.resize(pattern.nnz);
  for (int64_t o = 0; o < pattern.rows; ++o) {
    const int32_t base = static_cast<int32_t>(o / rows_per_group * per_group * panel.channel);
    for (int64_t e = pattern.crow[o]; e < pattern.crow[o + 1]; ++e)
      lists.taps[e] = {base + at[pattern.col[e]], values ? static_cast<A>(values[e]) : A(0)};
  }
  return lists;
}

// One list per input plane and phase, (channel * row phases + row phase) * column phases + column phase, by one counting sort.
template <class A, class T>
Taps<A> input_grad_taps(const ConvShape& shape, const CsrPattern& pattern, const Axis& rows, const Axis& columns, const Panel& panel,
                        const T* values) {
  const int64_t taps = shape.kernel[0] * shape.kernel[1], per_group = shape.channels / shape.groups, rows_per_group = shape.outputs / shape.groups;
  const int64_t across = static_cast<int64_t>(columns.steps.size()), phases = static_cast<int64_t>(rows.steps.size()) * across;
  std::vector<int32_t> at(pattern.cols);
  std::vector<int64_t> list(pattern.cols);  // within the group; -1: meets only the padding
  for (int64_t j = 0; j < pattern.cols; ++j) {
    const int64_t r = j % taps / shape.kernel[1], s = j % shape.kernel[1];
    const bool used = rows.phase[r] >= 0 && columns.phase[s] >= 0;
    at[j] = used ? static_cast<int32_t>(rows.tap[r] * panel.row + columns.tap[s] * panel.lanes) : 0;
    list[j] = used ? j / taps * phases + rows.phase[r] * across + columns.phase[s] : -1;
  }
  const auto each = [&](const auto& use) {
    for (int64_t o = 0; o < pattern.rows; ++o) {
      const int64_t first = o / rows_per_group * per_group * phases;
      for (int64_t e = pattern.crow[o]; e < pattern.crow[o + 1]; ++e)
        if (list[pattern.col[e]] >= 0) use(first + list[pattern.col[e]], o, e);
    }
  };
  Taps<A> lists;
  lists.begin.assign(shape.channels * phases + 1, 0);
  lists.taps.resize(pattern.nnz);
  each([&](int64_t l, int64_t, int64_t) { ++lists.begin[l + 1]; });
  for (size_t l = 1; l < lists.begin.size(); ++l) lists.begin[l] += lists.begin[l - 1];
  std::vector<int64_t> next(lists.begin.begin(), lists.begin.end() - 1);
  each([&](int64_t l, int64_t o, int64_t e) {
    lists.taps[next[l]++] = {static_cast<int32_t>(o * panel.channel) + at[pattern.col[e]], static_cast<A>(values[e])};
  });
  return lists;
}

}  // namespace sparsekern
