// Checks, split and registration of csr_spmm and csr_spmm_t; the kernel is in csr_spmm.h, the gradients in Python.
#include "cpu/csr_spmm_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "common/check.h"
#include "cpu/scratch.h"

#define SK_KERNEL_FILE "cpu/csr_spmm.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {

void check_values(const char* op, const char* name, const at::Tensor& given, const at::Tensor& b, int64_t count) {
  const bool half = b.element_size() == 2;
  TORCH_CHECK_TYPE(given.scalar_type() == b.scalar_type() || (half && given.scalar_type() == at::kFloat), op, ": ", name, ": expected ",
                   b.scalar_type(), half ? " or Float" : "", " beside ", b.scalar_type(), ", got ", given.scalar_type());
  TORCH_CHECK_VALUE(given.dim() == 1 && given.numel() == count, op, ": ", name, ": expected shape [", count, "], got ", given.sizes());
  TORCH_CHECK_VALUE(given.device().is_cpu(), op, ": ", name, ": expected a tensor on the CPU, got ", given.device(), "; move it with .to()");
}

void check_dense(const char* op, const char* name, const at::Tensor& b, int64_t height) {
  for_float(op, name, b.scalar_type(), [](auto) {});
  TORCH_CHECK_VALUE(b.dim() == 2 && b.size(0) == height, op, ": ", name, ": expected shape [", height, ", N], got ", b.sizes());
  TORCH_CHECK_VALUE(b.device().is_cpu(), op, ": ", name, ": expected a tensor on the CPU, got ", b.device(), "; move it with .to()");
}

at::Tensor with_unit_stride(const at::Tensor& t) {
  const bool row_major = t.stride(1) == 1 && t.stride(0) >= t.size(1), column_major = t.stride(0) == 1 && t.stride(1) >= t.size(0);
  return row_major || column_major ? t : t.contiguous();
}

int64_t threads_for(int64_t work) {
  constexpr int64_t kWorthAThread = int64_t{1} << 20;  // multiply-adds; starting a thread costs as much as half of them
  return at::in_parallel_region() ? 1 : std::clamp<int64_t>(work / kWorthAThread + 1, 1, at::get_num_threads());
}

namespace {

template <class T, class N>
void run(const Spmm<T, N>& s, int64_t rows, int64_t nnz) {
  using P = PanelOf<T>;
  const int64_t width = s.out.width;
  if (rows == 0 || width == 0) return;
  constexpr int most = kPanelVectors<T>;
  const int64_t panels = (width + 16 * most - 1) / (16 * most);
  // The threads get equal shares of (panel, row) pairs, panel by panel; a row weighs its nonzeros and one more.
  const int64_t weight = nnz + rows, total = panels * weight;
  // With few uses of each row of b, copying it into a panel costs more than the panel saves.
  const bool in_place = std::is_same_v<T, P> && s.b.col == 1 && width % 16 == 0 && nnz < 8 * s.b.height;
  const int64_t threads = threads_for((nnz + s.b.height) * width);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    Scratch scratch(in_place ? 0 : s.b.height * panel_row<P>(most) * static_cast<int64_t>(sizeof(P)));
    const int64_t begin = total * first / threads, end = total * last / threads;
    auto row_at = [&](int64_t place) {  // the first row that starts at or after `place` in its panel
      int64_t low = 0, high = rows;
      while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (s.crow[mid] + mid < place) low = mid + 1;
        else high = mid;
      }
      return low;
    };
    for (int64_t p = begin / weight; p < panels && p * weight < end; ++p) {
      const int64_t from = row_at(begin - p * weight), to = end >= (p + 1) * weight ? rows : row_at(end - p * weight);
      if (from >= to) continue;
      const int vectors = most > 1 && width - p * 16 * most <= 8 * most ? most / 2 : most;
      SK_PICK(spmm_piece<T, N>)(s, vectors, p * 16 * most, from, to, in_place ? nullptr : scratch.template at<void>(0));
    }
  });
}

}  // namespace

void spmm_into(const CsrPattern& w, const at::Tensor& val, const at::Tensor& b, const std::optional<at::Tensor>& bias, const at::Tensor& out,
               const at::Tensor& perm) {
  for_float("csr_spmm", "b", b.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arith<T>;
    const auto arith = std::is_same_v<T, double> ? at::kDouble : at::kFloat;
    at::Tensor values = val.contiguous();
    if (perm.defined()) {
      at::Tensor moved = at::empty({w.nnz}, values.options().dtype(arith));
      const int32_t* from = perm.const_data_ptr<int32_t>();
      for_float("csr_spmm_t", "val", val.scalar_type(), [&](auto number) {
        using N = decltype(number);
        if constexpr (std::is_same_v<Arith<N>, A>)
          at::parallel_for(0, w.nnz, 1 << 16, [&](int64_t first, int64_t last) {
            SK_PICK(gather_values<N, A>)(values.const_data_ptr<N>(), from + first, last - first, moved.mutable_data_ptr<A>() + first);
          });
      });
      values = moved;
    }
    const at::Tensor offset = bias ? bias->to(arith).contiguous() : at::Tensor();
    auto product = [&](auto number) {
      using N = decltype(number);
      run<T, N>({w.crow, w.col, values.const_data_ptr<N>(), bias ? offset.const_data_ptr<A>() : nullptr, dense_view<const T>(b), dense_view<T>(out)},
                w.rows, w.nnz);
    };
    // bfloat16 values are read as they are; float16 takes an instruction that not every instruction set here has.
    if constexpr (std::is_same_v<T, c10::BFloat16>)
      if (values.scalar_type() == at::kBFloat16) return product(c10::BFloat16{});
    values = values.to(arith);
    product(A{});
  });
}

namespace {

void check_algo(const char* op, c10::string_view algo) {
  TORCH_CHECK_VALUE(algo == "auto", op, ": algo: expected 'auto', got '", std::string(algo.data(), algo.size()), "'");
}

at::Tensor csr_spmm_cpu(const at::Tensor& crow, const at::Tensor& col, const at::Tensor& val, const at::Tensor& b, int64_t rows, int64_t cols,
                        const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& bias, c10::string_view algo) {
  constexpr const char* kOp = "csr_spmm";
  const CsrPattern w = checked_pattern(kOp, crow, col, rows, cols);
  check_dense(kOp, "b", b, cols);
  check_values(kOp, "val", val, b, w.nnz);
  if (bias) check_values(kOp, "bias", *bias, b, rows);
  if (row_order) checked_positions(kOp, "row_order", *row_order, rows, rows);
  check_algo(kOp, algo);
  at::Tensor out = at::empty({rows, b.size(1)}, b.options());
  spmm_into(w, val, with_unit_stride(b), bias, out);
  return out;
}

at::Tensor csr_spmm_t_cpu(const at::Tensor& crow_t, const at::Tensor& row_t, const at::Tensor& perm, const at::Tensor& val, const at::Tensor& b,
                          int64_t rows, int64_t cols, c10::string_view algo) {
  constexpr const char* kOp = "csr_spmm_t";
  const CsrPattern w = checked_pattern(kOp, crow_t, row_t, cols, rows, "crow_t", "row_t");
  check_dense(kOp, "b", b, rows);
  check_values(kOp, "val", val, b, w.nnz);
  const at::Tensor positions = checked_positions(kOp, "perm", perm, w.nnz, w.nnz);
  check_algo(kOp, algo);
  at::Tensor out = at::empty({cols, b.size(1)}, b.options());
  spmm_into(w, val, with_unit_stride(b), std::nullopt, out, positions);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_spmm", &csr_spmm_cpu);
  m.impl("csr_spmm_t", &csr_spmm_t_cpu);
}

}  // namespace sparsekern
