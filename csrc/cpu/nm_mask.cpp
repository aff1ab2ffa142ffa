// Checks, split and registration of nm_mask, nm_apply_ and nm_mask_transposable; the kernels are in nm_mask.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "common/check.h"
#include "common/float_types.h"
#include "common/nm_check.h"
#include "common/nm_patterns.h"
#include "cpu/mask_bits_op.h"
#include "cpu/nm_mask_op.h"
#include "cpu/nm_types.h"
#include "cpu/select_types.h"

#define SK_KERNEL_FILE "cpu/nm_mask.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr int64_t kBands = 8;  // of four rows: a thread's least share of a transposable mask

// fn(units, begin, end) over the groups of the dense tensor x along `dim`, in parallel.
template <class Fn>
void for_units(const at::Tensor& x, int64_t n, int64_t m, int64_t dim, const Fn& fn) {
  const int64_t numel = x.numel();
  if (numel == 0) return;
  // A dense tensor is [outer, length, inner] in memory order, whatever the order of its dimensions.
  int64_t length = x.dim() == 0 ? 1 : x.size(dim), inner = length == 1 ? 1 : x.stride(dim), outer = numel / (length * inner);
  if (inner == 1 && length % m == 0) {  // no line has a short group: all are one line
    length = numel;
    outer = 1;
  }
  const int64_t together = inner == 1 ? m * std::max<int64_t>(1, 16 / m) : m;
  NmUnits units{outer, length, inner, static_cast<int>(n), static_cast<int>(m), 0, length / together, static_cast<int>(together)};
  auto run = [&] {
    const int64_t blocks = (units.lanes() + 15) / 16, grain = std::max<int64_t>(1, (1 << 16) / (16 * units.width));
    if (units.width > 0)
      at::parallel_for(0, blocks, grain, [&](int64_t from, int64_t to) { fn(units, 16 * from, std::min(16 * to, units.lanes())); });
  };
  run();
  units.first = units.per_line * units.width;  // what is left of every line
  units.width = static_cast<int>(length - units.first);
  units.per_line = 1;
  run();
}

at::Tensor nm_mask_cpu(const at::Tensor& x, int64_t n, int64_t m, int64_t dim, bool use_abs, bool packed) {
  const int64_t along = check_nm("nm_mask", x, n, m, dim);
  const at::Tensor like = packed ? x.contiguous() : x;
  at::Tensor mask = at::empty_like(like, like.options().dtype(at::kBool));
  at::Tensor values = like;
  if (!same_layout(values, mask)) values = x.new_empty_strided(mask.sizes(), mask.strides()).copy_(x);
  auto* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  for_float("nm_mask", "x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const T*>(values.const_data_ptr());
    for_units(values, n, m, along,
              [&](const NmUnits& units, int64_t begin, int64_t end) { SK_PICK(nm_mask_piece<T>)(units, from, use_abs, out, begin, end); });
  });
  return packed ? pack_mask_cpu(mask) : mask;
}

void nm_apply_cpu(const at::Tensor& x, int64_t n, int64_t m, int64_t dim) {
  const int64_t along = check_nm("nm_apply_", x, n, m, dim);
  check_nm_dense("nm_apply_", x);
  for_float("nm_apply_", "x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto* data = static_cast<T*>(x.mutable_data_ptr());
    for_units(x, n, m, along, [&](const NmUnits& units, int64_t begin, int64_t end) { SK_PICK(nm_apply_piece<T>)(units, data, begin, end); });
  });
}

}  // namespace

at::Tensor nm_mask_transposable_cpu(const at::Tensor& x, int64_t n, int64_t m) {
  check_transposable(x, n, m);
  const at::Tensor values = x.contiguous();
  at::Tensor mask = at::empty(x.sizes(), x.options().dtype(at::kBool));
  const int64_t cols = x.size(1);
  if (x.numel() == 0) return mask;
  auto* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  for_float("nm_mask_transposable", "x", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const T*>(values.const_data_ptr());
    at::parallel_for(0, x.size(0) / 4, std::max<int64_t>(1, kBands * 1024 / cols),
                     [&](int64_t begin, int64_t end) { SK_PICK(transposable_piece<T>)(from, out, cols, begin, end); });
  });
  return mask;
}

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("nm_mask", &nm_mask_cpu);
  m.impl("nm_apply_", &nm_apply_cpu);
  m.impl("nm_mask_transposable", &nm_mask_transposable_cpu);
}

}  // namespace sparsekern
