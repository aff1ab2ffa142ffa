// Split and registration of sp24_compress and sp24_decompress; the kernels are in sp24.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <tuple>

#include "common/sp24_check.h"
#include "cpu/nm_mask_op.h"
#include "cpu/sp24_types.h"

#define SK_KERNEL_FILE "cpu/sp24.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// Where a mask is not 2:4 along rows and columns, which both directions share.
void name_both_ways(MaskView mask, int64_t rows, int64_t cols) {
  auto marked = [&](int64_t at) -> unsigned {
    if (mask.kind == MaskKind::bools) return static_cast<const uint8_t*>(mask.data)[at] != 0;
    return static_cast<const uint32_t*>(mask.data)[at >> 5] >> (at & 31) & 1;
  };
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t c = 0; c < cols; c += 4) {
      unsigned along[4] = {}, across[4] = {};
      for (int k = 0; k < 16; ++k) {
        const unsigned one = marked((r + k / 4) * cols + c + k % 4);
        along[k / 4] += one, across[k % 4] += one;
      }
      for (int k = 0; k < 4; ++k)
        TORCH_CHECK_VALUE(along[k] <= 2 && across[k] <= 2, "sp24_compress: mask: expected at most 2 of 4 along rows and along columns (both=True), ",
                          "got more in the 4 x 4 block at row ", r, ", column ", c, "; make it with nm_mask_transposable");
    }
}

// Whether what is written is so large that it should not push everything else out of the cache; lines must be whole.
bool goes_past_cache(const at::Tensor& written) {
  return written.nbytes() >= size_t{4} << 20 && reinterpret_cast<uintptr_t>(written.const_data_ptr()) % 64 == 0;
}

template <class U>
Sp24Packed<U> empty_packed(const at::Tensor& x, int64_t rows, int64_t cols, bool sm80, at::Tensor& v, at::Tensor& e) {
  v = at::empty({rows, cols / 2}, x.options());
  e = at::empty({rows, cols / 16}, x.options().dtype(at::kShort));
  return {static_cast<U*>(v.mutable_data_ptr()), static_cast<uint16_t*>(e.mutable_data_ptr()), sm80, rows, cols, goes_past_cache(v)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sp24_compress_cpu(const at::Tensor& x, const std::optional<at::Tensor>& given, bool both,
                                                                             c10::string_view layout) {
  const bool sm80 = check_sp24_compress(x, both, layout);
  at::Tensor keep, v, e, vt, et;
  MaskView mask = sp24_mask(given, x, keep);
  const int64_t rows = x.size(0), cols = x.size(1);
  if (both && mask.kind == MaskKind::none) {
    keep = nm_mask_transposable_cpu(x, 2, 4);
    mask = {MaskKind::bools, keep.const_data_ptr()};
  }
  const at::Tensor dense = x.contiguous();
  auto run = [&](auto zero, uint64_t infinity) {
    using U = decltype(zero);
    const Sp24Pack<U> s = {static_cast<const U*>(dense.const_data_ptr()), static_cast<U>(infinity), mask, empty_packed<U>(x, rows, cols, sm80, v, e),
                           empty_packed<U>(x, both ? cols : 0, both ? rows : 0, sm80, vt, et)};
    if (x.numel() == 0) return;
    const int64_t band = both ? kSp24Band : kSp24Rows;
    std::atomic<bool> good{true};
    at::parallel_for(0, rows / band, std::max<int64_t>(1, (1 << 16) / (band * cols)), [&](int64_t begin, int64_t end) {
      if (!SK_PICK(pack_piece<U>)(s, band * begin, band * end)) good = false;
    });
    if (!good) name_both_ways(mask, rows, cols);
  };
  switch (x.scalar_type()) {
    case at::kBFloat16:
      run(uint16_t(0), BFloat16Bits::kInfinity);
      break;
    case at::kHalf:
      run(uint16_t(0), Float16Bits::kInfinity);
      break;
    case at::kFloat:
      run(uint32_t(0), Float32::kInfinity);
      break;
    default:
      run(uint64_t(0), Float64::kInfinity);
  }
  return {v, e, vt, et};
}

at::Tensor sp24_decompress_cpu(const at::Tensor& v, const at::Tensor& e, at::IntArrayRef shape, c10::string_view layout) {
  const bool sm80 = check_sp24_decompress(v, e, shape, layout);
  at::Tensor x = at::empty(shape, v.options());
  if (x.numel() == 0) return x;
  const at::Tensor values = v.contiguous(), words = e.contiguous();
  auto run = [&](auto zero) {
    using U = decltype(zero);
    // Read through: the words are not written.
    const Sp24Packed<const U> s = {static_cast<const U*>(values.const_data_ptr()),
                                   const_cast<uint16_t*>(static_cast<const uint16_t*>(words.const_data_ptr())),
                                   sm80,
                                   shape[0],
                                   shape[1],
                                   goes_past_cache(x)};
    auto* to = static_cast<U*>(x.mutable_data_ptr());
    at::parallel_for(0, shape[0] / kSp24Rows, std::max<int64_t>(1, (1 << 16) / (kSp24Rows * shape[1])),
                     [&](int64_t begin, int64_t end) { SK_PICK(unpack_piece<U>)(s, to, kSp24Rows * begin, kSp24Rows * end); });
  };
  if (v.element_size() == 2) run(uint16_t(0));
  else if (v.element_size() == 4) run(uint32_t(0));
  else run(uint64_t(0));
  return x;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("sp24_compress", &sp24_compress_cpu);
  m.impl("sp24_decompress", &sp24_decompress_cpu);
}

}  // namespace sparsekern
