// Checks, pieces and registration of pack_mask, unpack_mask and mask_stats; the kernels are in mask_bits.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "common/mask_lists.h"
#include "cpu/mask_bits_op.h"
#include "cpu/mask_counts.h"
#include "cpu/pieces.h"

#define SK_KERNEL_FILE "cpu/mask_bits.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {

at::Tensor pack_mask_cpu(const at::Tensor& mask) {
  check_pack(mask);
  const at::Tensor flat = mask.contiguous();
  at::Tensor bits = at::empty({packed_words(mask.numel())}, mask.options().dtype(at::kInt));
  const auto* from = static_cast<const uint8_t*>(flat.const_data_ptr());
  auto* to = static_cast<uint32_t*>(bits.mutable_data_ptr());
  Pieces({mask.numel()}).each([&](int64_t, int64_t, int64_t begin, int64_t end) { SK_PICK(pack_mask_piece)(from, to, begin, end); });
  return bits;
}

namespace {

at::Tensor unpack_mask_cpu(const at::Tensor& bits, at::IntArrayRef shape) {
  const int64_t numel = check_unpack(bits, shape);
  const at::Tensor words = bits.contiguous();
  const auto* from = static_cast<const uint32_t*>(words.const_data_ptr());
  TORCH_CHECK_VALUE(numel % 32 == 0 || from[numel / 32] >> (numel % 32) == 0, "unpack_mask: bits: expected zeros past element ", numel, ", got word ",
                    numel % 32 ? from[numel / 32] : 0, " at the end; these words belong to another shape");
  at::Tensor mask = at::empty(shape, bits.options().dtype(at::kBool));
  auto* to = static_cast<uint8_t*>(mask.mutable_data_ptr());
  Pieces({numel}).each([&](int64_t, int64_t, int64_t begin, int64_t end) { SK_PICK(unpack_mask_piece)(from, to, begin, end); });
  return mask;
}

#if SK_X86
// One population count per 64 bytes, on CPUs that have it. Whole loads and a prefetch 1 KB ahead in the main loops: masked
// loads alone ran at a third of the read bandwidth from memory (AMD Zen 5, one thread).
#define SK_VPOPCNT __attribute__((target("avx512f,avx512vpopcntdq")))

SK_VPOPCNT inline __m512i popcnt(__m512i x) { return _mm512_popcnt_epi64(x); }

SK_VPOPCNT inline void prefetch(const uint32_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at) + 1024, _MM_HINT_T0); }

SK_VPOPCNT MaskCounts count_words_vpopcnt(const uint32_t* a, const uint32_t* b, int64_t begin, int64_t end) {
  __m512i in_a = _mm512_setzero_si512(), in_b = in_a, both = in_a;
  int64_t i = begin;
  if (b == nullptr) {
    for (; i + 16 <= end; i += 16) {
      prefetch(a + i);
      in_a = _mm512_add_epi64(in_a, popcnt(_mm512_loadu_si512(a + i)));
    }
  } else {
    for (; i + 16 <= end; i += 16) {
      prefetch(a + i);
      prefetch(b + i);
      const __m512i x = _mm512_loadu_si512(a + i), y = _mm512_loadu_si512(b + i);
      in_a = _mm512_add_epi64(in_a, popcnt(x));
      in_b = _mm512_add_epi64(in_b, popcnt(y));
      both = _mm512_add_epi64(both, popcnt(_mm512_and_si512(x, y)));
    }
  }
  if (i < end) {
    const auto inside = static_cast<__mmask16>((1u << (end - i)) - 1);
    const __m512i x = _mm512_maskz_loadu_epi32(inside, a + i), y = b ? _mm512_maskz_loadu_epi32(inside, b + i) : _mm512_setzero_si512();
    in_a = _mm512_add_epi64(in_a, popcnt(x));
    in_b = _mm512_add_epi64(in_b, popcnt(y));
    both = _mm512_add_epi64(both, popcnt(_mm512_and_si512(x, y)));
  }
  return {_mm512_reduce_add_epi64(in_a), _mm512_reduce_add_epi64(in_b), _mm512_reduce_add_epi64(both)};
}
#endif

using CountWords = MaskCounts (*)(const uint32_t*, const uint32_t*, int64_t, int64_t);

CountWords count_words() {
#if SK_X86
  static const bool has_vpopcnt = __builtin_cpu_supports("avx512vpopcntdq");
  if (has_vpopcnt && isa() == Isa::avx512) return &count_words_vpopcnt;
#endif
  return SK_PICK(count_words_piece);
}

at::Tensor mask_stats_cpu(at::TensorList a, std::optional<at::TensorList> second) {
  const StatsLists lists(a, second);
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < lists.size(); ++i) sizes.push_back(lists[i].numel);
  const Pieces pieces(sizes);
  std::vector<MaskCounts> partial(pieces.count());
  const CountWords words = count_words();
  pieces.each([&](int64_t piece, int64_t t, int64_t begin, int64_t end) {
    const StatsView& e = lists[t];
    partial[piece] = e.packed ? words(static_cast<const uint32_t*>(e.a), static_cast<const uint32_t*>(e.b), begin, end)
                              : SK_PICK(count_bools_piece)(static_cast<const uint8_t*>(e.a), static_cast<const uint8_t*>(e.b), begin, end);
  });
  at::Tensor stats = at::empty({static_cast<int64_t>(a.size()), 4}, at::TensorOptions().dtype(at::kLong));
  auto* row = static_cast<int64_t*>(stats.mutable_data_ptr());
  for (size_t t = 0; t < a.size(); ++t, row += 4) {
    MaskCounts sum;
    for (int64_t piece = pieces.first[t]; piece < pieces.first[t + 1]; ++piece) {
      sum.a += partial[piece].a;
      sum.b += partial[piece].b;
      sum.both += partial[piece].both;
    }
    row[0] = sum.a;
    row[1] = sum.b;
    row[2] = sum.both;
    row[3] = second ? sum.a + sum.b - 2 * sum.both : 0;
  }
  return stats;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("pack_mask", &pack_mask_cpu);
  m.impl("unpack_mask", &unpack_mask_cpu);
  m.impl("mask_stats", &mask_stats_cpu);
}

}  // namespace sparsekern
