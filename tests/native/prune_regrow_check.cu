// Runs the kernel behind prune_regrow_ without Python or torch against a plain loop, bit for bit; topk_mask_check.cu has the selections
// before it. See check.h for how to build it.
#include "check.h"
#include "cuda/prune_regrow.cu"

#include <memory>
#include <type_traits>

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

using Bytes = std::vector<unsigned char>;
using Words = std::vector<uint32_t>;

Words pack(const Bytes& on) {
  Words words((on.size() + 31) / 32, 0);
  for (size_t i = 0; i < on.size(); ++i) words[i / 32] |= static_cast<uint32_t>(on[i]) << (i % 32);
  return words;
}

Bytes coins(size_t n, unsigned one_in) {
  Bytes out(n);
  for (unsigned char& x : out) x = draw() % one_in == 0;
  return out;
}

// One tensor: a mask that was, what is kept and what is grown, values of T and a momentum of float.
template <class T>
struct Row {
  MaskForm form;
  Bytes before, kept, grown;
  std::vector<T> weight;
  std::vector<float> momentum;
  Device<unsigned char> d_bytes;
  Device<uint32_t> d_words, d_kept, d_grown;
  Device<T> d_weight;
  Device<float> d_momentum;

  Row(MaskForm form, size_t n, size_t shift)
      : form(form),
        before(coins(n, 2)),
        kept(coins(n, 3)),
        grown(coins(n, 9)),
        weight(values<T>(n)),
        momentum(values<float>(n)),
        d_bytes(before, shift),
        d_words(pack(before), shift),
        d_kept(pack(kept), 0),
        d_grown(pack(grown), 0),
        d_weight(weight, shift),
        d_momentum(momentum, shift) {}

  FlipEntry entry(int segment, bool with_momentum) const {
    FlipEntry e = {};
    e.mask = form == MaskForm::bools ? static_cast<void*>(d_bytes.get()) : d_words.get();
    e.mask_form = form;
    e.kept = d_kept.get();
    e.grown = d_grown.get();
    e.weight = d_weight.get();
    e.weight_width = sizeof(T);
    e.momentum = with_momentum ? d_momentum.get() : nullptr;
    e.momentum_width = sizeof(float);
    e.numel = static_cast<int64_t>(before.size());
    e.segment = segment;
    return e;
  }

  void expect(const FlipOptions& o, bool with_momentum, int64_t& dropped, int64_t& grew) {
    Bytes after(before.size());
    for (size_t i = 0; i < before.size(); ++i) {
      after[i] = kept[i] | grown[i];
      const bool fewer = before[i] && !after[i], more = after[i] && !before[i];
      dropped += fewer;
      grew += more;
      if ((fewer && o.zero_dropped) || (more && o.zero_grown)) narrow(0.f, weight[i]);
      if (with_momentum && (fewer || more)) momentum[i] = 0;
    }
    const std::vector<T> got = d_weight.read();
    const bool masks = form == MaskForm::bools ? d_bytes.read() == after : d_words.read() == pack(after);
    (void)d_kept.read(), (void)d_grown.read();
    if (!masks || std::memcmp(got.data(), weight.data(), sizeof(T) * got.size()) != 0 || d_momentum.read() != momentum) {
      std::printf("%zu elements: the masks %s\n", before.size(), masks ? "agree, weights or momenta do not" : "disagree");
      std::exit(1);
    }
  }
};

int cases = 0;

template <class T>
void check(size_t count, bool global, bool zero_dropped, bool zero_grown, bool with_momentum) {
  const size_t sizes[] = {1, 31, 32, 33, 1024, 1055, 9001, 70};
  std::vector<std::unique_ptr<Row<T>>> rows;
  std::vector<FlipEntry> entries;
  for (size_t k = 0; k < count; ++k) {
    rows.push_back(std::make_unique<Row<T>>(k % 3 ? MaskForm::bools : MaskForm::bits, count > 20 ? 1 + k % 70 : sizes[k % 8], k % 4));
    entries.push_back(rows[k]->entry(global ? 0 : static_cast<int>(k), with_momentum));
  }
  const size_t segments = global ? 1 : count;
  const Device<int64_t> dropped(std::vector<int64_t>(segments, 77), 0), grown(std::vector<int64_t>(segments, 77), 0);
  const FlipOptions options = {zero_dropped, zero_grown, dropped.get(), grown.get(), static_cast<int64_t>(segments)};
  REQUIRE_CUDA(launch_flips(entries.data(), entries.size(), options, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  std::vector<int64_t> fewer(segments, 0), more(segments, 0);
  for (size_t k = 0; k < count; ++k) rows[k]->expect(options, with_momentum, fewer[global ? 0 : k], more[global ? 0 : k]);
  if (dropped.read() != fewer || grown.read() != more) std::printf("the counts disagree\n"), std::exit(1);
  ++cases;
}

#ifdef __CUDACC__
void bench() {
  const size_t n = 25600000;
  for (const MaskForm form : {MaskForm::bools, MaskForm::bits}) {
    const Row<float> row(form, n, 0);
    const Device<int64_t> counts(std::vector<int64_t>(2), 0);
    const FlipOptions options = {false, true, counts.get(), counts.get() + 1, 1};
    FlipEntry entry = row.entry(0, true);
    const float us = median_us([&] { return launch_flips(&entry, 1, options, this_device(), nullptr); });
    std::printf("{\"op\": \"prune_regrow_, flips\", \"shape\": \"25.6M, %s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n",
                form == MaskForm::bits ? "bits" : "bools", us, n * (form == MaskForm::bits ? 0.375 : 1.25) / us * 1e-3);
  }
}
#endif

}  // namespace

int main(int argc, char** argv) {
#ifdef __CUDACC__
  if (wants_bench(argc, argv)) return bench(), 0;
#else
  wants_bench(argc, argv);
#endif
  check<float>(8, false, true, true, true);
  check<float>(8, true, false, true, true);
  check<__nv_bfloat16>(8, false, true, false, false);
  check<__half>(16, true, true, true, true);
  check<float>(600, false, true, true, true);
  std::printf("ok: %d launches agree bit for bit\n", cases);
}
