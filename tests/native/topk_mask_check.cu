// Runs the selection kernels of topk_mask without Python or torch against a sort, exactly. See check.h for how to build it.
#include "check.h"
#include "cuda/select.cu"

#include <functional>
#include <memory>
#include <string>

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

struct Options {
  bool largest = true, use_abs = true, drop = false, inverted = false;
};

template <class T>
ScoreForm form_of(bool widened) {
  if (std::is_same<T, float>::value) return ScoreForm::f32;
  if (std::is_same<T, __half>::value) return widened ? ScoreForm::f16_as_f32 : ScoreForm::f16;
  return widened ? ScoreForm::bf16_as_f32 : ScoreForm::bf16;
}

// A tensor with its masks, on the host and on the device.
struct Score {
  std::vector<float> value;
  std::vector<unsigned char> able;
  MaskForm able_form, mask_form;
  ScoreForm form;
  std::shared_ptr<void> keep;
  const void* data;
  std::function<void()> verify;  // guards
  std::shared_ptr<Device<unsigned char>> able_bytes, mask_bytes;
  std::shared_ptr<Device<uint32_t>> able_words, mask_words;

  template <class T>
  static Score make(size_t n, size_t shift, MaskForm able_form, MaskForm mask_form, bool widened, const std::function<float(size_t)>& at) {
    Score s;
    std::vector<T> scores(n);
    std::vector<uint32_t> words((n + 31) / 32, 0);
    for (size_t i = 0; i < n; ++i) {
      narrow(at(i), scores[i]);
      s.value.push_back(widen(scores[i]));
      s.able.push_back(able_form == MaskForm::none || draw() % 3 != 0);
      words[i / 32] |= static_cast<uint32_t>(s.able[i]) << (i % 32);
    }
    s.able_form = able_form;
    s.mask_form = mask_form;
    s.form = form_of<T>(widened);
    auto device = std::make_shared<Device<T>>(scores, shift);
    s.data = device->get();
    s.verify = [device] { (void)device->read(); };
    s.able_bytes = std::make_shared<Device<unsigned char>>(s.able, shift);
    s.able_words = std::make_shared<Device<uint32_t>>(words, shift);
    s.mask_bytes = std::make_shared<Device<unsigned char>>(std::vector<unsigned char>(n, 7), shift);
    s.mask_words = std::make_shared<Device<uint32_t>>(std::vector<uint32_t>(words.size(), 0x77777777u), shift);
    return s;
  }

  SelectEntry entry(bool inverted) const {
    SelectEntry e = {};
    e.scores = data;
    e.eligible = able_form == MaskForm::bools ? static_cast<void*>(able_bytes->get()) : able_words->get();
    e.mask = mask_form == MaskForm::bools ? static_cast<void*>(mask_bytes->get()) : mask_words->get();
    e.numel = static_cast<int64_t>(value.size());
    e.score_form = form;
    e.eligible_form = able_form;
    e.mask_form = mask_form;
    e.eligible_inverted = inverted && able_form != MaskForm::none;
    return e;
  }

  std::vector<unsigned char> mask() const {
    verify();
    std::vector<unsigned char> out = mask_bytes->read();
    const std::vector<uint32_t> words = mask_words->read();
    if (mask_form == MaskForm::bits)
      for (size_t i = 0; i < 32 * words.size(); ++i) {
        const unsigned char bit = words[i / 32] >> (i % 32) & 1;
        if (i < out.size()) out[i] = bit;
        else if (bit) std::printf("a padding bit is set\n"), std::exit(1);
      }
    return out;
  }
};

int cases = 0;

void check(const std::string& name, const std::vector<Score>& list, const std::vector<int64_t>& k, const Options& o, bool global, bool k_on_device) {
  std::vector<SelectEntry> entries;
  std::vector<SelectSegment> segments;
  const size_t count = global ? 1 : list.size();
  const Device<float> thresholds(std::vector<float>(count, 123.f), 0);
  const Device<int64_t> counts(std::vector<int64_t>(count, -7), 0), device_k(k, 0);
  for (const Score& s : list) entries.push_back(s.entry(o.inverted));
  for (size_t n = 0; n < count; ++n) {
    SelectSegment s = {};
    s.k = k[n];
    s.k_at = k_on_device ? device_k.get() + n : nullptr;
    s.entry_begin = global ? 0 : static_cast<int32_t>(n);
    s.entry_end = global ? static_cast<int32_t>(list.size()) : static_cast<int32_t>(n + 1);
    s.threshold_type = DType::f32;
    s.threshold = o.drop ? nullptr : thresholds.get() + n;
    s.count = o.drop ? nullptr : counts.get() + n;
    s.largest = o.largest;
    s.use_abs = o.use_abs;
    s.drop = o.drop;
    segments.push_back(s);
  }
  const SelectPlan plan = plan_select(entries.data(), entries.size(), segments.data(), segments.size());
  const Device<unsigned char> workspace(std::vector<unsigned char>(plan.bytes + 256, 0xee), 0);
  auto* aligned = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(workspace.get()) + 255) & ~uintptr_t(255));
  REQUIRE_CUDA(launch_select(entries.data(), entries.size(), segments.data(), segments.size(), plan, aligned, {2}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  (void)workspace.read();

  const std::vector<float> got_thresholds = thresholds.read();
  const std::vector<int64_t> got_counts = counts.read();
  std::vector<std::vector<unsigned char>> got;
  for (const Score& s : list) got.push_back(s.mask());
  for (size_t n = 0; n < count; ++n) {
    struct Item {
      size_t tensor, i;
      float value;
    };
    std::vector<Item> items;
    for (size_t t = global ? 0 : n; t < (global ? list.size() : n + 1); ++t)
      for (size_t i = 0; i < list[t].value.size(); ++i)
        if (list[t].able_form == MaskForm::none || (list[t].able[i] != 0) != o.inverted)
          items.push_back({t, i, o.use_abs ? std::fabs(list[t].value[i]) : list[t].value[i]});
    std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
      if (std::isnan(a.value) || std::isnan(b.value)) return !std::isnan(a.value) && std::isnan(b.value);
      return o.largest ? a.value > b.value : a.value < b.value;
    });
    const size_t want = static_cast<size_t>(std::min<int64_t>(std::max<int64_t>(k[n], 0), static_cast<int64_t>(items.size())));
    const size_t on = o.drop ? items.size() - want : want;
    std::vector<std::vector<unsigned char>> expected;
    for (const Score& s : list) expected.emplace_back(s.value.size(), 0);
    for (size_t j = 0; j < on; ++j) expected[items[j].tensor][items[j].i] = 1;
    for (size_t t = global ? 0 : n; t < (global ? list.size() : n + 1); ++t)
      for (size_t i = 0; i < expected[t].size() && list[t].mask_form != MaskForm::none; ++i)
        if (got[t][i] != expected[t][i]) {
          std::printf("%s: tensor %zu, element %zu of %zu (%g): mask %d, expected %d; k %ld of %zu\n", name.c_str(), t, i, expected[t].size(),
                      list[t].value[i], got[t][i], expected[t][i], static_cast<long>(k[n]), items.size());
          std::exit(1);
        }
    if (o.drop) continue;
    const float last = want == 0 ? NAN : items[want - 1].value + 0.f;
    if (got_counts[n] != static_cast<int64_t>(want) || !(got_thresholds[n] == last || (std::isnan(last) && std::isnan(got_thresholds[n])))) {
      std::printf("%s: segment %zu: threshold %g, expected %g; count %ld, expected %zu\n", name.c_str(), n, got_thresholds[n], last,
                  static_cast<long>(got_counts[n]), want);
      std::exit(1);
    }
  }
  ++cases;
}

const std::vector<std::pair<const char*, std::function<float(size_t)>>> kinds = {
    {"normal", [](size_t) { return uniform() * uniform() * uniform(); }},
    {"all equal", [](size_t) { return -1.5f; }},
    {"two values", [](size_t) { return uniform() > 0.4f ? 2.f : 1.f; }},
    {"narrow", [](size_t) { return 1.f + 3e-5f * uniform(); }},
    {"some NaN", [](size_t) { return draw() % 50 == 0 ? NAN : uniform(); }},
    {"all NaN", [](size_t) { return NAN; }},
    {"mostly zero of both signs", [](size_t i) { return draw() % 9 == 0 ? uniform()
                                                        : i % 2         ? 0.f
                                                                        : -0.f; }},
    {"infinities", [](size_t) { return draw() % 4 == 0 ? (uniform() > 0 ? INFINITY : -INFINITY) : uniform(); }},
    {"sorted", [](size_t i) { return static_cast<float>(i) - 7000.f; }},
    {"few integers", [](size_t) { return std::round(4 * uniform()); }},
};

template <class T>
void check_type(const std::string& type, size_t round) {
  const std::vector<size_t> sizes = {0, 1, 33, 1000, 1025, 3000, 8192, 8193, 9011};
  const MaskForm forms[3] = {MaskForm::none, MaskForm::bools, MaskForm::bits};
  const Options all[] = {{true, true, false, false},  {false, true, false, true}, {true, false, false, false},
                         {false, false, false, true}, {true, true, true, false},  {true, false, true, true}};
  for (const auto& [name, at] : kinds) {
    const Options& o = all[++round % 6];
    std::vector<Score> list;
    std::vector<int64_t> k;
    int64_t total = 0;
    const bool global = round % 3 == 0;
    for (size_t n = 0; n < sizes.size(); ++n) {
      if (sizes[n] > 8192 ? n != 7 + round % 2 : n > 3 && n != 4 + round % 3) continue;  // the emulator takes its time
      const MaskForm mask = round % 8 == 7 ? MaskForm::none : forms[1 + (n + round) % 2];
      list.push_back(Score::make<T>(sizes[n], (n + round) % 4, forms[(n + round / 2) % 3], mask, global && round % 2 == 0, at));
      k.push_back(static_cast<int64_t>(sizes[n] * (draw() % 12) / 10) - (draw() % 5 == 0));
      total += static_cast<int64_t>(sizes[n]);
    }
    if (global) k = {total * static_cast<int64_t>(draw() % 12) / 10};
    check(type + " " + name, list, k, o, global, round % 4 < 2);
  }
}

// Scores that mislead the sample, at every element that is not drawn, so that brackets miss or overflow; and heavy ties inside them.
void check_misled() {
  size_t n = 12001;
  std::vector<unsigned char> drawn(n, 0);
  const uint32_t m = sample_size(n);
  for (uint32_t i = 0; i < m; ++i) drawn[sample_at(i, m, n)] = 1;
  const auto run = [&](const char* name, double share, bool drop, const std::function<float(size_t)>& drawn_at,
                       const std::function<float(size_t)>& at) {
    std::vector<Score> list;
    list.push_back(Score::make<float>(n, 0, MaskForm::none, MaskForm::bits, false, [&](size_t i) { return drawn[i] ? drawn_at(i) : at(i); }));
    check(name, list, {static_cast<int64_t>(share * n)}, {true, true, drop, false}, false, true);
  };
  const auto spread = [](size_t) { return 0.5f + 0.5f * uniform(); };
  run("all above", 0.5, false, spread, [](size_t) { return 7.f + uniform(); });
  run("all above and equal", 0.3, true, spread, [](size_t) { return 7.f; });
  run("all below", 0.5, false, spread, [](size_t) { return 1e-9f * uniform(); });
  run("all below and equal", 0.9, false, spread, [](size_t) { return 0.f; });
  run("too many inside", 0.5, false, spread, [](size_t) { return 0.5f + 1e-4f * uniform(); });
  run("too many equal inside", 0.5, true, spread, [](size_t) { return 0.5f; });
  run("NaN", 0.95, false, spread, [](size_t) { return NAN; });
  run("NaN first", 0.5, true, spread, [](size_t) { return NAN; });
  n = 60000;  // one bin of the list keeps more than one block takes
  drawn.assign(n, 0);
  run("a heavy tie in the list", 0.47, false, spread, [&](size_t i) { return i % 40 < 3 ? 0.5f : spread(i); });
}

// Large segments behind each other, with short ones and empty tensors between them, each with a number of its own.
void check_several() {
  std::vector<Score> list;
  std::vector<int64_t> k;
  for (const size_t n : {0, 8193, 5, 30011, 0, 8200, 1030, 12289, 0}) {
    list.push_back(Score::make<float>(n, 0, MaskForm::none, MaskForm::bools, false, kinds[list.size()].second));
    k.push_back(static_cast<int64_t>(n * list.size() / 10));
  }
  check("several", list, k, {true, true, false, false}, false, false);
}

void check_plan() {
  SelectEntry entries[4] = {};
  SelectSegment segments[3] = {};
  const int64_t numel[4] = {5, 9000, int64_t(3) << 30, 2000};
  for (int i = 0; i < 4; ++i) entries[i].numel = numel[i];
  for (int n = 0; n < 3; ++n) segments[n].entry_begin = n == 0 ? 0 : n + 1, segments[n].entry_end = n + 2;
  const SelectPlan plan = plan_select(entries, 4, segments, 3);
  const int64_t first = (9000 + kGranule - 1) / kGranule + 1 + kVisitCost, second = ((int64_t(3) << 30) + kGranule - 1) / kGranule;
  if (plan.tiny != 0 || plan.small != 1 || plan.large != 2 || plan.granules != first + second || segments[0].visit != 2 ||
      segments[1].last != plan.granules || entries[1].offset != 5 || entries[2].first != first ||
      plan.bytes < static_cast<size_t>(plan.candidates) * 8 || plan.bytes > (size_t(3) << 30))
    std::printf("the launch plan is wrong\n"), std::exit(1);
  for (int bits = 14; bits <= 32; ++bits)  // a list holds what three counts leave, see kSweeps
    if (list_capacity((int64_t(1) << (bits - 1)) + 1) < int64_t(1) << std::max(0, bits - 7)) std::printf("a list is too short\n"), std::exit(1);
}

#ifdef __CUDACC__
// 25.6M and 100M together, 54 segments, 10,000 short ones.
void bench() {
  struct Shape {
    const char* name;
    size_t count, numel;
    bool global;
  };
  for (const Shape& shape : {Shape{"25.6M global", 1, 25600000, true}, Shape{"100M global", 1, 100000000, true},
                             Shape{"54 segments of 474K", 54, 474074, false}, Shape{"10,000 segments of 1K", 10000, 1024, false}})
    for (const MaskForm form : {MaskForm::bools, MaskForm::bits}) {
      const size_t n = shape.count * shape.numel;
      std::vector<float> host(n);
      for (float& x : host) x = uniform() * uniform() * uniform();
      const Device<float> scores(host, 0);
      const Device<unsigned char> mask(std::vector<unsigned char>(n), 0);
      std::vector<SelectEntry> entries(shape.count, SelectEntry{});
      std::vector<SelectSegment> segments(shape.count, SelectSegment{});
      for (size_t i = 0; i < shape.count; ++i) {
        entries[i].scores = scores.get() + i * shape.numel;
        entries[i].mask = mask.get() + i * shape.numel / (form == MaskForm::bits ? 8 : 1) / 4 * 4;
        entries[i].mask_form = form;
        entries[i].numel = static_cast<int64_t>(shape.numel);
        segments[i].k = static_cast<int64_t>(shape.numel / 10);
        segments[i].entry_begin = static_cast<int32_t>(i);
        segments[i].entry_end = static_cast<int32_t>(i + 1);
        segments[i].largest = segments[i].use_abs = true;
      }
      const SelectPlan plan = plan_select(entries.data(), entries.size(), segments.data(), segments.size());
      const Device<unsigned char> workspace(std::vector<unsigned char>(plan.bytes + 256), 0);
      auto* aligned = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(workspace.get()) + 255) & ~uintptr_t(255));
      const DeviceProps props = this_device();
      const float us =
          median_us([&] { return launch_select(entries.data(), entries.size(), segments.data(), segments.size(), plan, aligned, props, nullptr); });
      std::printf("{\"op\": \"topk_mask\", \"shape\": \"%s, %s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", shape.name,
                  form == MaskForm::bits ? "bits" : "bools", us, static_cast<double>(n) * (form == MaskForm::bits ? 4.125 : 5) / us * 1e-3);
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
  check_plan();
  for (const size_t round : {0, 3}) check_type<float>("fp32", round);
  check_type<__nv_bfloat16>("bf16", 1);
  check_type<__half>("fp16", 2);
  check_misled();
  check_several();
  std::printf("ok: %d selections agree with a sort\n", cases);
}
