// Checks, work split and registration of the sparse convolution; the kernels are in sparse_conv2d.h, the gradient's formulas in Python.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/float_types.h"
#include "cpu/conv2d_plan.h"
#include "cpu/csr_pattern.h"
#include "cpu/scratch.h"

#define SK_KERNEL_FILE "cpu/sparse_conv2d.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr const char *kForward = "sparse_conv2d", *kInputGrad = "sparse_conv2d_input_grad", *kWeightGrad = "sparse_conv2d_weight_grad";
constexpr int64_t kBlock = 16;              // output planes in a unit of work
constexpr int64_t kChunks = 8;              // partial sums of a weight gradient
constexpr int64_t kWorthThreads = 1 << 20;  // multiply-adds
constexpr int64_t kWorthLanes = 16;         // vectors of a sum that are worth the addition of its lanes
constexpr int64_t kJoinedRow = 512;         // elements
constexpr int64_t kMost = 2147483647;       // columns are int32
constexpr int64_t kReach = 1 << 17;         // elements of a panel that stay in L2 beside the output gradient

struct Geometry {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  int64_t groups;
};

// A kernel of one position that moves by one: rows may be joined, which fills vectors better. They stay short enough for L2.
void join_rows(ConvShape& s) {
  for (int i : {0, 1})
    if (s.kernel[i] != 1 || s.stride[i] != 1 || s.padding[i] != 0) return;
  int64_t joined = std::clamp<int64_t>(kJoinedRow / std::max<int64_t>(s.in[1], 1), 1, s.in[0]);
  while (s.in[0] % joined) --joined;
  s.in[0] = s.out[0] = s.in[0] / joined;
  s.in[1] = s.out[1] = s.in[1] * joined;
}

// The shape of a call, or the error that says what does not fit; words as in the Python file.
ConvShape checked_shape(const char* op, at::IntArrayRef input_size, const at::Tensor& crow, const Geometry& g) {
  TORCH_CHECK_VALUE(input_size.size() == 4, op, ": x: expected [N, C, H, W], got shape ", input_size);
  const auto check_pair = [&](const char* name, at::IntArrayRef pair, int64_t least) {
    TORCH_CHECK_VALUE(pair.size() == 2 && pair[0] >= least && pair[1] >= least, op, ": ", name, ": expected two numbers >= ", least, ", got ", pair);
    TORCH_CHECK_VALUE(pair[0] <= kMost && pair[1] <= kMost, op, ": ", name, ": expected two numbers below 2^31, got ", pair);
  };
  check_pair("kernel_size", g.kernel_size, 1);
  check_pair("stride", g.stride, 1);
  check_pair("padding", g.padding, 0);
  check_pair("dilation", g.dilation, 1);
  TORCH_CHECK_VALUE(crow.dim() == 1 && crow.numel() >= 1, op, ": crow: expected [O + 1] row pointers, got shape ", crow.sizes());
  ConvShape s;
  s.images = input_size[0], s.channels = input_size[1], s.outputs = crow.numel() - 1, s.groups = g.groups;
  TORCH_CHECK_VALUE(g.groups >= 1 && s.channels % g.groups == 0 && s.outputs % g.groups == 0, op, ": groups: expected a divisor of ", s.channels,
                    " input and ", s.outputs, " output channels, got ", g.groups);
  TORCH_CHECK_VALUE(g.kernel_size[0] * g.kernel_size[1] <= kMost && s.channels <= kMost, op,
                    ": kernel_size: expected less than 2^31 weights to an output channel, got ", g.kernel_size, " with ", s.channels, " channels");
  for (int i : {0, 1}) {
    s.in[i] = input_size[2 + i], s.kernel[i] = g.kernel_size[i], s.stride[i] = g.stride[i], s.padding[i] = g.padding[i],
    s.dilation[i] = g.dilation[i];
    const int64_t room = s.in[i] + 2 * s.padding[i] - s.dilation[i] * (s.kernel[i] - 1) - 1;
    TORCH_CHECK_VALUE(room >= 0, op, ": kernel_size: expected a kernel that fits into the padded input, got ", g.kernel_size, " with dilation ",
                      g.dilation, " for an input of ", input_size.slice(2), " and padding ", g.padding);
    s.out[i] = room / s.stride[i] + 1;
  }
  s.y = {s.images, s.outputs, s.out[0], s.out[1]};
  join_rows(s);
  return s;
}

CsrPattern pattern_of(const char* op, const ConvShape& s, const at::Tensor& crow, const at::Tensor& col) {
  return checked_pattern(op, crow, col, s.outputs, s.channels / s.groups * s.kernel[0] * s.kernel[1]);
}

void check_like(const char* op, const char* name, const at::Tensor& t, at::IntArrayRef shape, const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), op, ": ", name, ": expected ", like.scalar_type(), " like ", like_name, ", got ",
                   t.scalar_type(), "; convert it with .to()");
  TORCH_CHECK_VALUE(t.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == like.device(), op, ": ", name, ": expected a tensor on ", like.device(), ", got ", t.device());
}

// Threads get neighbouring units, so that most fill a panel for themselves alone; little work stays on one thread.
template <class Fn>
void share(int64_t units, double work, const Fn& fn) {
  at::parallel_for(0, units, work < kWorthThreads ? std::max<int64_t>(units, 1) : 1, fn);
}

double work_of(const ConvShape& s, const CsrPattern& p) { return static_cast<double>(p.nnz) * s.images * s.out[0] * s.out[1]; }

// Fills what both products share and runs them.
template <class T>
void run_product(ProductJob<T>& job, const Panel& panel, const Axis& rows, const Axis& columns, int64_t in_image, int64_t out_height,
                 int64_t out_width, double work) {
  job.panel = &panel;
  job.in_image = in_image;
  job.out_width = out_width, job.out_plane = out_height * out_width, job.out_image = job.planes * job.out_plane;
  job.row_step = rows.between, job.column_step = columns.between;
  for (size_t r = 0; r < rows.steps.size(); ++r)
    for (size_t c = 0; c < columns.steps.size(); ++c)
      job.phases.push_back({static_cast<int64_t>(r), static_cast<int64_t>(c), rows.steps[r], columns.steps[c]});
  if (job.phases.empty() || job.images == 0 || job.planes == 0) return;
  job.rows_at_once = kReach / std::max<int64_t>(panel.channels * panel.row, 1);
  job.band = 8 * (columns.steps[0] + 16) * panel.lanes;
  job.block = kBlock, job.blocks = (job.planes + kBlock - 1) / kBlock;
  share((job.images + panel.lanes - 1) / panel.lanes * job.blocks, work,
        [&](int64_t begin, int64_t end) { SK_PICK(product_units<T>)(job, begin, end); });
}

at::Tensor sparse_conv2d_cpu(const at::Tensor& x, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val,
                             const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups) {
  const ConvShape s = checked_shape(kForward, x.sizes(), crow, {kernel_size, stride, padding, dilation, groups});
  for_float(kForward, "x", x.scalar_type(), [](auto) {});
  check_like(kForward, "val", val, col.sizes(), "x", x);
  if (bias) check_like(kForward, "bias", *bias, {s.outputs}, "x", x);
  const CsrPattern pattern = pattern_of(kForward, s, crow, col);
  const at::Tensor from = x.contiguous(), values = val.contiguous(), biases = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty(s.y, x.options());
  if (out.numel() == 0) return out;
  const Axis rows = forward_axis(s, 0), columns = forward_axis(s, 1);
  const Panel panel = make_panel(kForward, rows, columns, s.channels, lanes_for(s.images, s.out[1], s.channels * s.in[0] * s.in[1]));
  for_float(kForward, "x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto lists = forward_taps<Arith<T>>(s, pattern, rows, columns, panel, values.const_data_ptr<T>());
    ProductJob<T> job;
    job.in = from.const_data_ptr<T>(), job.images = s.images, job.planes = s.outputs;
    job.begin = lists.begin.data(), job.taps = lists.taps.data();
    job.bias = bias ? biases.const_data_ptr<T>() : nullptr;
    job.out = out.mutable_data_ptr<T>();
    run_product(job, panel, rows, columns, s.channels * s.in[0] * s.in[1], s.out[0], s.out[1], work_of(s, pattern));
  });
  return out;
}

at::Tensor sparse_conv2d_input_grad_cpu(const at::Tensor& grad_y, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val,
                                        at::IntArrayRef input_size, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                        at::IntArrayRef dilation, int64_t groups) {
  const ConvShape s = checked_shape(kInputGrad, input_size, crow, {kernel_size, stride, padding, dilation, groups});
  for_float(kInputGrad, "grad_y", grad_y.scalar_type(), [](auto) {});
  check_like(kInputGrad, "grad_y", grad_y, s.y, "x", grad_y);
  check_like(kInputGrad, "val", val, col.sizes(), "grad_y", grad_y);
  const CsrPattern pattern = pattern_of(kInputGrad, s, crow, col);
  if (grad_y.numel() == 0) return at::zeros(input_size, grad_y.options());
  const at::Tensor from = grad_y.contiguous(), values = val.contiguous();
  at::Tensor out = at::empty(input_size, grad_y.options());
  const Axis rows = input_grad_axis(s, 0), columns = input_grad_axis(s, 1);
  const Panel panel = make_panel(kInputGrad, rows, columns, s.outputs,
                                 lanes_for(s.images, (s.in[1] + s.stride[1] - 1) / s.stride[1], s.outputs * s.out[0] * s.out[1]));
  for_float(kInputGrad, "grad_y", grad_y.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto lists = input_grad_taps<Arith<T>>(s, pattern, rows, columns, panel, values.const_data_ptr<T>());
    ProductJob<T> job;
    job.in = from.const_data_ptr<T>(), job.images = s.images, job.planes = s.channels;
    job.begin = lists.begin.data(), job.taps = lists.taps.data();
    job.out = out.mutable_data_ptr<T>();
    run_product(job, panel, rows, columns, s.outputs * s.out[0] * s.out[1], s.in[0], s.in[1], work_of(s, pattern));
  });
  return out;
}

at::Tensor sparse_conv2d_weight_grad_cpu(const at::Tensor& x, const at::Tensor& grad_y, const at::Tensor& crow, const at::Tensor& col,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                         int64_t groups) {
  const ConvShape s = checked_shape(kWeightGrad, x.sizes(), crow, {kernel_size, stride, padding, dilation, groups});
  for_float(kWeightGrad, "x", x.scalar_type(), [](auto) {});
  check_like(kWeightGrad, "grad_y", grad_y, s.y, "x", x);
  const CsrPattern pattern = pattern_of(kWeightGrad, s, crow, col);
  if (x.numel() == 0 || grad_y.numel() == 0) return at::zeros(col.sizes(), x.options());
  const at::Tensor images = x.contiguous(), grads = grad_y.contiguous();
  at::Tensor out = at::empty(col.sizes(), x.options());
  const Axis rows = forward_axis(s, 0), columns = forward_axis(s, 1);
  const int64_t lanes = lanes_for(s.images, s.out[1], s.channels * s.in[0] * s.in[1]);
  const Panel panel = make_panel(kWeightGrad, rows, columns, s.channels, lanes),
              plain = plain_panel(kWeightGrad, s.out[0], s.out[1], s.outputs, lanes);
  // Small planes of single images are summed over a group of images before their lanes are.
  const int64_t vectors = plain.row / 16 * s.out[0];
  const int64_t group = lanes == 16 ? 1 : std::clamp<int64_t>(kWorthLanes / vectors, 1, 8);
  const int64_t sums = (s.images + lanes * group - 1) / (lanes * group);
  // Partial sums never take more room than the activations.
  const int64_t room = (x.numel() + grad_y.numel()) / (2 * std::max<int64_t>(pattern.nnz, 1));
  const int64_t chunks = std::clamp<int64_t>(std::min(sums, room), 1, kChunks);
  std::vector<double> partial(chunks * pattern.nnz, 0.0);
  for_float(kWeightGrad, "x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto lists = forward_taps<Arith<T>, T>(s, pattern, rows, columns, panel, nullptr);
    WeightJob<T> job;
    job.panel = &panel, job.plain = &plain;
    job.x = images.const_data_ptr<T>(), job.grad_y = grads.const_data_ptr<T>();
    job.images = s.images, job.x_image = s.channels * s.in[0] * s.in[1], job.grad_image = s.outputs * s.out[0] * s.out[1];
    job.begin = lists.begin.data(), job.taps = lists.taps.data(), job.partial = partial.data();
    const int tail = lanes == 16 || s.out[1] % 16 == 0 ? 16 : static_cast<int>(s.out[1] % 16);
    job.direct = std::is_same_v<T, Arith<T>> && lanes == 1 && tail == 16;
    job.geometry = {
        panel.row, s.out[0], plain.row / 16, tail, (panel.size() + 15) / 16 * 16, job.direct ? job.grad_image : (plain.size() + 15) / 16 * 16};
    job.outputs = s.outputs, job.block = kBlock, job.blocks = (s.outputs + kBlock - 1) / kBlock;
    job.group = group, job.chunk = (sums + chunks - 1) / chunks * group * lanes;
    const int64_t channel = std::max<int64_t>(panel.channel, 1);
    job.reach = channel * std::max<int64_t>(kReach / (channel * group), 1);
    if (pattern.nnz) share(chunks * job.blocks, work_of(s, pattern), [&](int64_t begin, int64_t end) { SK_PICK(weight_units<T>)(job, begin, end); });
    T* to = out.mutable_data_ptr<T>();
    for (int64_t e = 0; e < pattern.nnz; ++e) {
      double sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += partial[c * pattern.nnz + e];
      to[e] = static_cast<T>(static_cast<Arith<T>>(sum));
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("sparse_conv2d", &sparse_conv2d_cpu);
  m.impl("sparse_conv2d_input_grad", &sparse_conv2d_input_grad_cpu);
  m.impl("sparse_conv2d_weight_grad", &sparse_conv2d_weight_grad_cpu);
}

}  // namespace sparsekern
