// Checks, split and registration of csr_linear and its backward pass; the sweep is in csr_linear.h.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "common/check.h"
#include "cpu/csr_spmm_op.h"
#include "cpu/scratch.h"

#define SK_KERNEL_FILE "cpu/csr_linear.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// The pattern and its transpose, both checked against x.
struct Layer {
  CsrPattern w, t;
  at::Tensor perm;
};

Layer checked_layer(const char* op, const at::Tensor& x, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val,
                    const at::Tensor& crow_t, const at::Tensor& row_t, const at::Tensor& perm, int64_t rows) {
  TORCH_CHECK_VALUE(x.dim() == 2, op, ": x: expected two dimensions, got shape ", x.sizes());
  const int64_t cols = x.size(1);
  Layer layer{checked_pattern(op, crow, col, rows, cols), checked_pattern(op, crow_t, row_t, cols, rows, "crow_t", "row_t"), {}};
  layer.perm = checked_positions(op, "perm", perm, layer.t.nnz, layer.w.nnz);
  TORCH_CHECK_VALUE(layer.t.nnz == layer.w.nnz, op, ": row_t: expected ", layer.w.nnz, " nonzeros like col, got ", layer.t.nnz);
  check_dense(op, "x", x.t(), cols);
  check_values(op, "val", val, x, layer.w.nnz);
  return layer;
}

at::Tensor csr_linear_cpu(const at::Tensor& x, const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& crow_t,
                          const at::Tensor& row_t, const at::Tensor& perm, const std::optional<at::Tensor>& bias, int64_t rows) {
  constexpr const char* kOp = "csr_linear";
  const Layer layer = checked_layer(kOp, x, crow, col, val, crow_t, row_t, perm, rows);
  if (bias) check_values(kOp, "bias", *bias, x, rows);
  at::Tensor y = at::empty({x.size(0), rows}, x.options());
  spmm_into(layer.w, val, with_unit_stride(x).t(), bias, y.t());
  return y;
}

template <class T>
using Sweep = void (*)(const LinearBackward<T>&, int, int64_t, int64_t, int64_t, const Arith<T>*, Arith<T>*, void*);

template <class T>
Sweep<T> pick_sweep(bool need_x, bool need_val) {
  if (need_x && need_val) return SK_PICK(backward_piece<T, true, true>);
  if (need_x) return SK_PICK(backward_piece<T, true, false>);
  return SK_PICK(backward_piece<T, false, true>);
}

// Each thread has a range of columns and walks it in runs, whose values and gradients it keeps beside a panel of dy: 2 MB with
// 4,096 rows, and less than 2 bytes a nonzero of a large layer. A run is long enough to make packing dy again cheap.
template <class T, class N>
void sweep(const LinearBackward<T>& s, const Layer& layer, const N* val, N* grad_val, bool need_x) {
  using P = PanelOf<T>;
  using A = Arith<T>;
  const int64_t cols = layer.w.cols, rows = layer.w.rows, batch = s.x.width, weight = layer.t.nnz + cols;
  // Two vectors leave registers for sixteen products in flight, in bfloat16 too.
  const int most = std::is_same_v<T, double> || (!std::is_same_v<T, c10::BFloat16> && batch <= 16) ? 1 : 2;
  const int64_t* crow_t = s.crow_t;
  const int32_t* perm = layer.perm.const_data_ptr<int32_t>();
  const Sweep<T> piece = pick_sweep<T>(need_x, grad_val != nullptr);
  auto column_at = [&](int64_t place) {  // the first column that starts at or after `place`, in nonzeros and columns
    int64_t low = 0, high = cols;
    while (low < high) {
      const int64_t mid = (low + high) / 2;
      if (crow_t[mid] + mid < place) low = mid + 1;
      else high = mid;
    }
    return low;
  };
  const int64_t threads = threads_for((2 * layer.t.nnz + rows + cols) * batch);
  const int64_t most_in_run = std::max<int64_t>(std::clamp<int64_t>(layer.t.nnz / (4 * threads), 1 << 16, 190'000), 4 * rows);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = column_at(weight * first / threads), end = last == threads ? cols : column_at(weight * last / threads);
    for (int64_t from = begin; from < end;) {
      int64_t to = std::upper_bound(crow_t + from + 1, crow_t + end + 1, crow_t[from] + most_in_run) - crow_t - 1;
      to = std::max(to, from + 1);
      const int64_t count = crow_t[to] - crow_t[from];
      const int64_t lines = (count * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
      Scratch scratch(2 * lines + rows * panel_row<P>(most) * static_cast<int64_t>(sizeof(P)));
      A *values = scratch.template at<A>(0), *gradients = scratch.template at<A>(lines);
      if (need_x) SK_PICK(gather_values<N, A>)(val, perm + crow_t[from], count, values);
      for (int64_t j = 0; j < batch; j += 16 * most) piece(s, most, j, from, to, values, gradients, scratch.template at<void>(2 * lines));
      if (grad_val != nullptr)
        for (int64_t e = 0; e < count; ++e) grad_val[perm[crow_t[from] + e]] = static_cast<N>(gradients[e]);
      from = to;
    }
  });
}

template <class T>
at::Tensor bias_gradient(const Dense<const T>& dy, at::ScalarType type, const at::TensorOptions& options) {
  at::Tensor sums = at::empty({dy.height}, options.dtype(std::is_same_v<T, double> ? at::kDouble : at::kFloat));
  auto* to = sums.template mutable_data_ptr<Arith<T>>();
  at::parallel_for(0, (dy.height + 15) / 16, std::max<int64_t>(1, (1 << 16) / (dy.width + 1)), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) SK_PICK(bias_sums<T>)(dy, 16 * i, to);
  });
  return sums.to(type);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> csr_linear_backward_cpu(const at::Tensor& x, const at::Tensor& grad_y, const at::Tensor& crow,
                                                                       const at::Tensor& col, const at::Tensor& val, const at::Tensor& crow_t,
                                                                       const at::Tensor& row_t, const at::Tensor& perm, bool need_x, bool need_val,
                                                                       bool need_bias) {
  constexpr const char* kOp = "csr_linear_backward";
  const int64_t rows = crow.numel() - 1;
  const Layer layer = checked_layer(kOp, x, crow, col, val, crow_t, row_t, perm, rows);
  TORCH_CHECK_TYPE(grad_y.scalar_type() == x.scalar_type(), kOp, ": grad_y: expected ", x.scalar_type(), " like x, got ", grad_y.scalar_type());
  TORCH_CHECK_VALUE(grad_y.dim() == 2 && grad_y.size(0) == x.size(0) && grad_y.size(1) == rows, kOp, ": grad_y: expected shape [", x.size(0), ", ",
                    rows, "], got ", grad_y.sizes());
  at::Tensor dx = at::empty(need_x ? x.sizes() : at::IntArrayRef{0}, x.options());
  at::Tensor dval = at::empty({need_val ? val.numel() : 0}, val.options()), dbias = at::empty({0}, val.options());
  const at::Tensor source = with_unit_stride(x).t(), dy = with_unit_stride(grad_y).t(), values = val.contiguous();
  for_float(kOp, "x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    LinearBackward<T> s{layer.t.crow, layer.t.col, dense_view<const T>(source), dense_view<const T>(dy), {}};
    if (need_x) s.dx = dense_view<T>(dx.t());
    if (x.size(0) == 0) {
      if (need_val) dval.zero_();
    } else if (need_x || need_val) {
      if (val.scalar_type() == x.scalar_type())
        sweep<T, T>(s, layer, values.const_data_ptr<T>(), need_val ? dval.mutable_data_ptr<T>() : nullptr, need_x);
      else sweep<T, float>(s, layer, values.const_data_ptr<float>(), need_val ? dval.mutable_data_ptr<float>() : nullptr, need_x);
    }
    if (need_bias) dbias = bias_gradient<T>(s.dy, val.scalar_type(), x.options());
  });
  return {dx, dval, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_linear", &csr_linear_cpu);
  m.impl("csr_linear_backward", &csr_linear_backward_cpu);
}

}  // namespace sparsekern
