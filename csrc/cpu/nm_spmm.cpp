// Checks, split and registration of nm_pack and nm_spmm; the product is in nm_spmm.h, the gradients in Python.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "common/nm_check.h"
#include "cpu/csr_spmm_op.h"
#include "cpu/nm_types.h"
#include "cpu/scratch.h"

#define SK_KERNEL_FILE "cpu/nm_spmm.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

// ---- packing ----

// Which of the `cols` columns has anything but a zero of either sign in a band of `v` rows, as bits. U: the bits of an element.
template <class U>
void used_columns(const U* x, int64_t v, int64_t cols, uint64_t* used) {
  std::fill(used, used + cols / 64 + 2, uint64_t{0});
  for (int64_t r = 0; r < v; ++r, x += cols)
    for (int64_t c = 0; c < cols; c += 64) {
      const int some = static_cast<int>(std::min<int64_t>(64, cols - c));
      uint64_t word = 0;
      for (int k = 0; k < some; ++k) word |= static_cast<uint64_t>(static_cast<U>(x[c + k] << 1) != 0) << k;
      used[c / 64] |= word;
    }
}

// `m` bits from bit `at` on.
uint64_t bits_at(const uint64_t* words, int64_t at, int64_t m) {
  const int64_t word = at >> 6, shift = at & 63;
  uint64_t bits = words[word] >> shift;
  if (shift) bits |= words[word + 1] << (64 - shift);
  return m == 64 ? bits : bits & ((uint64_t{1} << m) - 1);
}

// Bands [begin, end) of v rows; returns the first group that has too many, counted through the bands, or -1.
template <class U>
int64_t pack_bands(const U* x, int64_t n, int64_t m, int64_t v, int64_t cols, U* values, uint8_t* index, int64_t begin, int64_t end) {
  std::vector<uint64_t> used(cols / 64 + 2);
  const int64_t groups = cols / m, per_row = groups * n;
  for (int64_t band = begin; band < end; ++band) {
    const U* from = x + band * v * cols;
    used_columns(from, v, cols, used.data());
    for (int64_t g = 0; g < groups; ++g) {
      uint64_t bits = bits_at(used.data(), g * m, m);
      int64_t missing = n - __builtin_popcountll(bits);
      if (missing < 0) return band * groups + g;
      for (; missing > 0; --missing) bits |= bits + 1;  // the first zeros fill up
      for (int64_t e = g * n; bits; bits &= bits - 1, ++e) {
        const int k = __builtin_ctzll(bits);
        index[band * per_row + e] = static_cast<uint8_t>(k);
        for (int64_t r = 0; r < v; ++r) values[(band * v + r) * per_row + e] = from[r * cols + g * m + k];
      }
    }
  }
  return -1;
}

template <class U>
int64_t pack(const at::Tensor& x, int64_t n, int64_t m, int64_t v, const at::Tensor& values, const at::Tensor& index) {
  const int64_t cols = x.size(1), bands = x.size(0) / v;
  std::atomic<int64_t> fault{-1};
  const auto* from = static_cast<const U*>(x.const_data_ptr());
  auto* to = static_cast<U*>(values.mutable_data_ptr());
  auto* places = static_cast<uint8_t*>(index.mutable_data_ptr());
  at::parallel_for(0, bands, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, v * cols)), [&](int64_t begin, int64_t end) {
    const int64_t found = pack_bands(from, n, m, v, cols, to, places, begin, end);
    int64_t known = fault;
    while (found >= 0 && (known < 0 || found < known) && !fault.compare_exchange_weak(known, found)) {
    }
  });
  return fault;
}

std::tuple<at::Tensor, at::Tensor> nm_pack_cpu(const at::Tensor& x, int64_t n, int64_t m, int64_t v) {
  check_nm_pack(x, n, m, v);
  const int64_t rows = x.size(0), cols = x.size(1), per_row = cols / m * n;
  at::Tensor values = at::empty({rows, per_row}, x.options()), index = at::empty({rows / v, per_row}, x.options().dtype(at::kByte));
  const at::Tensor dense = x.contiguous();
  const int64_t fault = x.numel() == 0          ? -1
                        : x.element_size() == 2 ? pack<uint16_t>(dense, n, m, v, values, index)
                        : x.element_size() == 4 ? pack<uint32_t>(dense, n, m, v, values, index)
                                                : pack<uint64_t>(dense, n, m, v, values, index);
  TORCH_CHECK_VALUE(fault < 0, "nm_pack: x: expected at most ", n, " non-zero ", v > 1 ? "columns" : "elements", " in each group of ", m,
                    ", got more in row", v > 1 ? "s " : " ", fault / (cols / m) * v, v > 1 ? " and following" : "", ", group ", fault % (cols / m),
                    "; apply nm_mask first");
  return {values, index};
}

// ---- product ----

// The first place in [0, count) that is not below m, or -1; eight at a time. m <= 64.
int64_t first_outside(const uint8_t* index, int64_t count, int64_t m) {
  constexpr uint64_t kOnes = 0x0101010101010101u, kTops = 0x8080808080808080u;
  const uint64_t lift = kOnes * static_cast<uint64_t>(128 - m);
  for (int64_t e = 0; e < count; e += 8) {
    uint64_t word = 0;
    std::memcpy(&word, index + e, std::min<int64_t>(8, count - e));
    if ((((word & ~kTops) + lift) | word) & kTops)
      for (int64_t k = e; k < std::min(e + 8, count); ++k)
        if (index[k] >= m) return k;
  }
  return -1;
}

template <class T, class N>
void run(const NmProduct<T, N>& s, int64_t rows) {
  using P = PanelOf<T>;
  constexpr int most = kPanelVectors<T>;
  const int64_t width = s.out.width, panels = (width + 16 * most - 1) / (16 * most), total = panels * rows;
  if (total == 0) return;
  const int64_t together = s.v % 4 == 0 ? 4 : 1;  // rows that no two threads may part
  // With few uses of each row of b, copying it into a panel costs more than the panel saves.
  const bool in_place = std::is_same_v<T, P> && s.b.col == 1 && width % 16 == 0 && rows * s.per_row < 8 * s.b.height;
  const int64_t threads = threads_for((rows * s.per_row + s.b.height) * width);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    Scratch scratch(in_place ? 0 : s.b.height * panel_row<P>(most) * static_cast<int64_t>(sizeof(P)));
    const int64_t begin = total * first / threads, end = total * last / threads;
    for (int64_t p = begin / rows; p * rows < end; ++p) {
      const int64_t from = std::max<int64_t>(0, begin - p * rows) / together * together;
      const int64_t to = end >= (p + 1) * rows ? rows : (end - p * rows) / together * together;
      if (from >= to) continue;
      const int vectors = most > 1 && width - p * 16 * most <= 8 * most ? most / 2 : most;
      SK_PICK(nm_piece<T, N>)(s, vectors, p * 16 * most, from, to, in_place ? nullptr : scratch.template at<void>(0));
    }
  });
}

at::Tensor nm_spmm_cpu(const at::Tensor& values, const at::Tensor& index, const at::Tensor& b, int64_t n, int64_t m, int64_t cols, int64_t v,
                       const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "nm_spmm";
  check_nm_packed(values, index, n, m, cols, v);
  check_dense(kOp, "b", b, cols);
  const int64_t rows = values.size(0), per_row = cols / m * n;
  check_values(kOp, "values", values.flatten(), b, rows * per_row);
  if (bias) check_values(kOp, "bias", *bias, b, rows);
  TORCH_CHECK_VALUE(index.device().is_cpu(), kOp, ": index: expected a tensor on the CPU, got ", index.device(), "; move it with .to()");
  const at::Tensor places = index.contiguous(), operand = with_unit_stride(b);
  const auto* at = places.const_data_ptr<uint8_t>();
  const int64_t fault = first_outside(at, places.numel(), m);
  TORCH_CHECK_VALUE(fault < 0, kOp, ": index: expected positions in [0, ", m, "), got ", static_cast<int>(at[std::max<int64_t>(fault, 0)]),
                    " in row ", fault / per_row, ", position ", fault % per_row);
  std::vector<int32_t> base(per_row);
  for (int64_t e = 0; e < per_row; ++e) base[e] = static_cast<int32_t>(e / n * m);
  at::Tensor out = at::empty({rows, b.size(1)}, b.options());
  for_float(kOp, "b", b.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Arith<T>;
    const auto arith = std::is_same_v<T, double> ? at::kDouble : at::kFloat;
    const at::Tensor offset = bias ? bias->to(arith).contiguous() : at::Tensor();
    auto product = [&](const at::Tensor& numbers, auto number) {
      using N = decltype(number);
      run<T, N>({numbers.const_data_ptr<N>(), at, base.data(), per_row, v, bias ? offset.const_data_ptr<A>() : nullptr, dense_view<const T>(operand),
                 dense_view<T>(out)},
                rows);
    };
    // bfloat16 values are read as they are; float16 takes an instruction that not every instruction set here has.
    if constexpr (std::is_same_v<T, c10::BFloat16>)
      if (values.scalar_type() == at::kBFloat16) return product(values.contiguous(), c10::BFloat16{});
    product(values.to(arith).contiguous(), A{});
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("nm_pack", &nm_pack_cpu);
  m.impl("nm_spmm", &nm_spmm_cpu);
}

}  // namespace sparsekern
