// Runs the kernels of project_conflict_ and project_conflict_sgd_ without Python or torch: sums against a plain loop in
// double, everything behind them bit for bit. check.h says how to build and run it.
#include "cuda/project_conflict.cu"

#include <memory>

#include "check.h"
#include "cuda/masked_sgd.cu"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

#define REQUIRE(holds, ...) ((holds) ? void() : (std::printf(__VA_ARGS__), std::printf(": " #holds "\n"), std::exit(1)))

template <class P, class G>
struct Tensor {
  SgdKind kind;
  std::vector<G> a, b;
  std::vector<P> param;
  std::vector<unsigned char> on;
  std::unique_ptr<Device<G>> d_a, d_b;
  std::unique_ptr<Device<P>> d_param, d_buffer;
  std::unique_ptr<Device<unsigned char>> d_bools;
  std::unique_ptr<Device<uint32_t>> d_words;

  // Shifts (in elements) misalign the gradients, the param and the mask. Hidden elements are NaN: they must reach nothing.
  Tensor(SgdKind kind, size_t n, bool conflict, bool invert, const std::vector<size_t>& shift)
      : kind(kind), a(values<G>(n)), b(n), param(values<P>(n)), on(n, 1) {
    std::vector<uint32_t> words((n + 31) / 32, 0);
    for (size_t i = 0; i < n; ++i) {
      narrow((conflict ? -0.3f : 0.3f) * widen(a[i]) + 0.5f * uniform(), b[i]);
      const bool bit = kind == SgdKind::none || draw() % 2;
      if (bit) words[i / 32] |= 1u << (i % 32);
      on[i] = bit != (invert && kind != SgdKind::none);
      if (!on[i] && i % 3 == 0) narrow(NAN, a[i]), narrow(NAN, b[i]);
    }
    std::vector<unsigned char> bools(on);
    for (unsigned char& x : bools) x ^= invert;
    d_a = std::make_unique<Device<G>>(a, shift[0]);
    d_b = std::make_unique<Device<G>>(b, shift[1]);
    d_param = std::make_unique<Device<P>>(param, shift[2]);
    d_buffer = std::make_unique<Device<P>>(param, shift[3]);
    d_bools = std::make_unique<Device<unsigned char>>(bools, shift[3]);
    d_words = std::make_unique<Device<uint32_t>>(words, shift[3]);
  }
  const void* where() const {
    return kind == SgdKind::bools ? static_cast<const void*>(d_bools->get()) : kind == SgdKind::bits ? d_words->get() : nullptr;
  }
  ConflictEntry entry(int32_t row) const {
    return {d_param->get(), d_buffer->get(), d_a->get(), d_b->get(), where(), static_cast<int64_t>(a.size()), 0, row, kind};
  }
  SgdEntry step() const { return {d_param->get(), d_a->get(), d_buffer->get(), where(), static_cast<int64_t>(a.size()), 0, kind}; }
};

template <class T>
bool same(const std::vector<T>& x, const std::vector<T>& y) {
  return x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

int cases = 0;

template <class P, class G>
void check(const char* pair, bool conflict, bool per_tensor, bool invert) {
  const std::vector<std::vector<size_t>> shifts = {{0, 0, 0, 0}, {1, 1, 1, 1}, {3, 3, 3, 3}, {0, 1, 0, 0}, {1, 0, 2, 3}, {2, 2, 0, 1}};
  const std::vector<size_t> sizes = {0, 1, 3, 4, 8, 31, 33, 255, 1024, 4095, 4096, 4097, 9001};
  const SgdKind kinds[] = {SgdKind::bools, SgdKind::bits, SgdKind::none};
  std::vector<std::unique_ptr<Tensor<P, G>>> list, other;  // the second for the two calls that the fused one stands for
  std::vector<ConflictEntry> entries, others;
  std::vector<SgdEntry> steps;
  const auto seed = draw();
  for (auto* tensors : {&list, &other}) {
    draw.seed(seed);
    for (size_t k = 0; k < sizes.size(); ++k)
      tensors->push_back(std::make_unique<Tensor<P, G>>(invert ? kinds[k % 2] : kinds[k % 3], sizes[k], conflict, invert, shifts[k % 6]));
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    entries.push_back(list[k]->entry(per_tensor ? static_cast<int32_t>(k) : 0));
    others.push_back(other[k]->entry(per_tensor ? static_cast<int32_t>(k) : 0));
    if (sizes[k] != 0) steps.push_back(other[k]->step());
  }
  const int64_t slots = conflict_slots(entries.data(), entries.size());
  const size_t rows = per_tensor ? sizes.size() : 1;
  Device<ConflictSums> few(std::vector<ConflictSums>(slots), 0), many(std::vector<ConflictSums>(slots), 0);
  Device<float> coefficients(std::vector<float>(rows), 0), stats(std::vector<float>(4 * rows), 0);
  const JudgeOptions judge = {0, nullptr, coefficients.get(), stats.get()};
  REQUIRE_CUDA(launch_conflict_dots(entries.data(), entries.size(), dtype_of<G>, invert, many.get(), {3}, nullptr));
  REQUIRE_CUDA(launch_conflict_dots(entries.data(), entries.size(), dtype_of<G>, invert, few.get(), {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  REQUIRE(same(few.read(), many.read()), "%s: sums depend on the number of SMs", pair);
  REQUIRE_CUDA(per_tensor ? launch_conflict_judge_each(entries.data(), entries.size(), few.get(), judge, nullptr)
                          : launch_conflict_judge(few.get(), slots, judge, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());

  const std::vector<float> c = coefficients.read(), s = stats.read();
  std::vector<double> want(4 * rows, 0);
  for (size_t k = 0; k < sizes.size(); ++k)
    for (size_t i = 0; i < sizes[k]; ++i)
      if (list[k]->on[i]) {
        const double x = widen(list[k]->a[i]), y = widen(list[k]->b[i]);
        double* row = want.data() + (per_tensor ? 4 * k : 0);
        row[0] += x * y, row[1] += y * y, row[2] += x * x, row[3] += std::fabs(x * y);
      }
  for (size_t r = 0; r < rows; ++r) {
    const double d = want[4 * r], q = want[4 * r + 1], n = want[4 * r + 2], error = 1e-5 * want[4 * r + 3];
    REQUIRE(std::fabs(s[4 * r] - d) <= error && std::fabs(s[4 * r + 1] - q) <= 1e-5 * q, "%s: row %zu: %g, %g for %g, %g", pair, r, s[4 * r],
            s[4 * r + 1], d, q);
    REQUIRE(std::fabs(s[4 * r + 2] - (q * n == 0 ? 0 : d / std::sqrt(q * n))) <= 2e-5, "%s: cosine of row %zu", pair, r);
    REQUIRE(std::fabs(d) <= error || (s[4 * r + 3] == (d < 0) && (c[r] != 0) == (d < 0)), "%s: decision of row %zu", pair, r);
    REQUIRE(c[r] == 0 || std::fabs(c[r] - d / q) <= 1e-5 * want[4 * r + 3] / q, "%s: coefficient of row %zu", pair, r);
  }

  // The fused step; the change alone and then the plain step. In half precision only that alone rounds the gradient.
  const SgdOptions options = {{0.01, 0.9, 0.1, 0, false, false, false, true, invert}, false, nullptr, nullptr, nullptr};
  REQUIRE_CUDA(launch_projected_sgd(entries.data(), entries.size(), dtype_of<P>, dtype_of<G>, options, coefficients.get(), {1}, nullptr));
  if (!invert) REQUIRE_CUDA(launch_conflict_subtract(others.data(), others.size(), dtype_of<G>, coefficients.get(), per_tensor, {1}, nullptr));
  REQUIRE_CUDA(launch_masked_sgd(steps.data(), steps.size(), dtype_of<P>, dtype_of<G>, options, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  for (size_t k = 0; k < sizes.size(); ++k) {
    const float coefficient = c[per_tensor ? k : 0];
    std::vector<G> projected = list[k]->a;
    for (size_t i = 0; i < sizes[k] && !invert && coefficient != 0; ++i)
      if (list[k]->on[i]) {
        volatile float part = widen(list[k]->b[i]) * coefficient;
        narrow(widen(list[k]->a[i]) - part, projected[i]);
      }
    REQUIRE(same(other[k]->d_a->read(), projected), "%s: projected gradient %zu", pair, k);
    REQUIRE(same(list[k]->d_a->read(), list[k]->a) && same(list[k]->d_b->read(), list[k]->b), "%s: gradient %zu was written", pair, k);
    const std::vector<P> fused = list[k]->d_param->read(), twice = other[k]->d_param->read();
    const bool exact = coefficient == 0 || (sizeof(G) == 4 && !invert);
    REQUIRE(!exact || (same(fused, twice) && same(list[k]->d_buffer->read(), other[k]->d_buffer->read())), "%s: param %zu", pair, k);
    for (size_t i = 0; i < sizes[k]; ++i)
      REQUIRE(list[k]->on[i] ? std::isfinite(widen(fused[i])) : widen(fused[i]) == 0, "%s: element %zu of param %zu", pair, i, k);
  }
  ++cases;
}

template <class P, class G>
void check_pair(const char* pair) {
  for (const bool per_tensor : {false, true}) {
    check<P, G>(pair, true, per_tensor, false);
    check<P, G>(pair, false, per_tensor, false);
  }
  check<P, G>(pair, true, false, true);
}

#ifdef __CUDACC__
void bench() {
  const size_t n = 2 << 20, count = 50;
  for (const bool conflict : {false, true}) {
    std::vector<std::unique_ptr<Tensor<float, float>>> list;
    std::vector<ConflictEntry> entries;
    for (size_t k = 0; k < count; ++k) {
      list.push_back(std::make_unique<Tensor<float, float>>(SgdKind::none, n, conflict, false, std::vector<size_t>{0, 0, 0, 0}));
      entries.push_back(list.back()->entry(0));
    }
    const int64_t slots = conflict_slots(entries.data(), count);
    Device<ConflictSums> sums(std::vector<ConflictSums>(slots), 0);
    Device<float> coefficients(std::vector<float>(1), 0);
    const JudgeOptions judge = {0, nullptr, coefficients.get(), nullptr};
    const SgdOptions options = {{1e-4, 0.9, 1e-6, 0, false, false, false, false, false}, false, nullptr, nullptr, nullptr};
    const DeviceProps props = this_device();
    const auto decide = [&] {
      const int status = launch_conflict_dots(entries.data(), count, DType::f32, false, sums.get(), props, nullptr);
      return status ? status : launch_conflict_judge(sums.get(), slots, judge, nullptr);
    };
    const auto print = [&](const char* op, double bytes, float us) {
      std::printf("{\"op\": \"%s\", \"shape\": \"%zu x %zu, %s\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, count, n,
                  conflict ? "conflict" : "no conflict", us, bytes * static_cast<double>(n * count) / us * 1e-3);
    };
    print("project_conflict_sgd_", conflict ? 32 : 28, median_us([&] {
            const int status = decide();
            return status ? status : launch_projected_sgd(entries.data(), count, DType::f32, DType::f32, options, coefficients.get(), props, nullptr);
          }));
    // Projected once, the gradients agree for good: the coefficient of the first decision is kept for the second pass.
    REQUIRE_CUDA(decide());
    print("project_conflict_ products", 8, median_us(decide));
    print("project_conflict_ change", conflict ? 12 : 0,
          median_us([&] { return launch_conflict_subtract(entries.data(), count, DType::f32, coefficients.get(), false, props, nullptr); }));
  }
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const bool measure = wants_bench(argc, argv);
#ifdef __CUDACC__
  if (measure) return bench(), 0;
#endif
  (void)measure;
  check_pair<float, float>("fp32/fp32");
  check_pair<float, __nv_bfloat16>("fp32/bf16");
  check_pair<float, __half>("fp32/fp16");
  check_pair<__nv_bfloat16, __nv_bfloat16>("bf16/bf16");
  check_pair<__half, __half>("fp16/fp16");
  std::printf("ok: %d rounds\n", cases);
}
