// Runs the kernel of masked_weight against a plain loop, bit for bit. Arguments and builds: check.h.
#include "cuda/masked_weight.cu"

#include <memory>
#include <string>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

template <class F, class O>
O rounded(F x) {
  O out;
  if constexpr (std::is_same<F, O>::value) out = x;
  else narrow(widen(x), out);
  return out;
}

template <class F, class O>
struct Tensor {
  MaskKind kind;
  std::vector<F> from;
  std::vector<unsigned char> bools;
  std::vector<uint32_t> words;
  std::unique_ptr<Device<F>> d_from;
  std::unique_ptr<Device<O>> d_to;
  std::unique_ptr<Device<unsigned char>> d_bools;
  std::unique_ptr<Device<uint32_t>> d_words;

  // Shifts (in elements) misalign weight, output and mask.
  Tensor(MaskKind kind, size_t n, double sparsity, std::vector<size_t> shift) : kind(kind), from(values<F>(n)), bools(n, 1), words((n + 31) / 32, 0) {
    for (size_t i = 0; i < n; ++i) {
      if (kind != MaskKind::none) bools[i] = uniform() * 0.5 + 0.5 >= sparsity;
      if (bools[i]) words[i / 32] |= 1u << (i % 32);
      if (i % 3 == 0) narrow(i % 2 ? NAN : INFINITY, from[i]);  // shows only where the mask is on
    }
    d_from = std::make_unique<Device<F>>(from, shift[0]);
    d_to = std::make_unique<Device<O>>(values<O>(n), shift[1]);
    d_bools = std::make_unique<Device<unsigned char>>(bools, shift[2]);
    d_words = std::make_unique<Device<uint32_t>>(words, shift[2]);
  }

  WeightEntry entry() const {
    const void* mask = kind == MaskKind::bools ? static_cast<const void*>(d_bools->get()) : kind == MaskKind::bits ? d_words->get() : nullptr;
    return {d_from->get(), d_to->get(), mask, static_cast<int64_t>(from.size()), 0, kind};
  }

  void expect(const std::string& name) {
    const std::vector<O> got = d_to->read();
    for (size_t i = 0; i < from.size(); ++i) {
      O want;
      narrow(0.f, want);
      if (bools[i]) want = rounded<F, O>(from[i]);
      if (std::memcmp(&got[i], &want, sizeof(O)) != 0) {
        std::printf("%s: kind %d, element %zu of %zu (inside %d): %.9g, expected %.9g\n", name.c_str(), static_cast<int>(kind), i, from.size(),
                    bools[i], widen(got[i]), widen(want));
        std::exit(1);
      }
    }
    (void)d_from->read();
  }
};

int cases = 0;

template <class F, class O>
void check(const std::string& name, std::vector<std::unique_ptr<Tensor<F, O>>>& list) {
  std::vector<WeightEntry> entries;
  for (const auto& t : list)
    if (!t->from.empty()) entries.push_back(t->entry());  // the binding drops empty tensors
  REQUIRE_CUDA(launch_masked_weight(entries.data(), entries.size(), dtype_of<F>, dtype_of<O>, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (const auto& t : list) t->expect(name);
  ++cases;
}

template <class F, class O>
void check_pair(const char* pair) {
  const std::vector<std::vector<size_t>> shifts = {{0, 0, 0}, {1, 0, 0}, {3, 3, 3}, {0, 1, 0}, {0, 0, 1}};
  for (const double sparsity : {0.5, 0.97})
    for (const MaskKind kind : {MaskKind::none, MaskKind::bools, MaskKind::bits}) {
      std::vector<std::unique_ptr<Tensor<F, O>>> list;
      for (const size_t n : {0, 1, 7, 8, 9, 31, 33, 255, 1024, 1025, 3079, 9001})
        list.push_back(std::make_unique<Tensor<F, O>>(kind, n, sparsity, shifts[list.size() % shifts.size()]));
      check(pair, list);
    }
}

void check_long_lists() {
  for (const size_t count : {size_t(81), size_t(900)}) {  // the long table; two launches
    std::vector<std::unique_ptr<Tensor<float, float>>> list;
    for (size_t k = 0; k < count; ++k)
      list.push_back(std::make_unique<Tensor<float, float>>(static_cast<MaskKind>(k % 3), 1 + k % 70, 0.5, std::vector<size_t>{0, 0, 0}));
    check(std::to_string(count) + " tensors", list);
  }
}

#ifdef __CUDACC__
// 12 tensors of 2M elements: more take the host too long to draw.
template <class O>
void bench(const char* name) {
  constexpr size_t count = 12;
  for (const MaskKind kind : {MaskKind::bools, MaskKind::bits})
    for (const double sparsity : {0.5, 0.9}) {
      std::vector<std::unique_ptr<Tensor<float, O>>> list;
      std::vector<WeightEntry> entries;
      for (size_t k = 0; k < count; ++k) {
        list.push_back(std::make_unique<Tensor<float, O>>(kind, 2 << 20, sparsity, std::vector<size_t>{0, 0, 0}));
        entries.push_back(list.back()->entry());
      }
      const DeviceProps props = this_device();
      const float us = median_us([&] { return launch_masked_weight(entries.data(), count, DType::f32, dtype_of<O>, props, nullptr); });
      const double bytes = static_cast<double>(count) * (2 << 20) * (4 + sizeof(O) + (kind == MaskKind::bools ? 1 : 0.125));
      std::printf("{\"op\": \"masked_weight\", \"shape\": \"12 x 2M %s, %s, %.0f%%\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", name,
                  kind == MaskKind::bools ? "bools" : "bits", sparsity * 100, us, bytes / us * 1e-3);
    }
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) {
#ifdef __CUDACC__
    bench<float>("fp32");
    bench<__nv_bfloat16>("fp32 to bf16");
#endif
    return 0;
  }
  check_pair<float, float>("fp32");
  check_pair<__nv_bfloat16, __nv_bfloat16>("bf16");
  check_pair<__half, __half>("fp16");
  check_pair<float, __nv_bfloat16>("fp32 to bf16");
  check_pair<float, __half>("fp32 to fp16");
  check_pair<__nv_bfloat16, float>("bf16 to fp32");
  check_pair<__half, float>("fp16 to fp32");
  check_pair<__nv_bfloat16, __half>("bf16 to fp16");
  check_pair<__half, __nv_bfloat16>("fp16 to bf16");
  check_long_lists();
  std::printf("ok: %d launches agree bit for bit\n", cases);
}
