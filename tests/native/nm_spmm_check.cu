// Runs the kernels of nm_spmm without Python or torch. scalar and staged are chains of fused multiply-adds in column order and must agree with a
// plain loop bit for bit; the tensor cores add in an order of their own. How to build it: check.h.
#include <string>

#include "check.h"
#include "cuda/csr_spmm.cu"
#include "cuda/nm_spmm.cu"
#include "cuda/nm_spmm_mma.cu"
#include "cuda/nm_spmm_staged.cu"

using namespace sparsekern::cuda;

namespace {

template <class T>
constexpr SpmmType type_of = dtype_of<T> == DType::f32    ? SpmmType::f32
                             : dtype_of<T> == DType::bf16 ? SpmmType::bf16
                                                          : SpmmType::f16;
int launches = 0, staged_launches = 0, mma_launches = 0;

struct Case {
  int64_t rows, groups, n;
  int keep, group;
  int64_t v = 1;
  bool column_major = false, bias = false;
  size_t shift = 0;   // elements by which operands are misaligned
  int64_t pad = 0;    // between lines of b
  int shared = 8192;  // a small device: tiles of few rows
};

// T: b and out. V: values and bias.
template <class T, class V>
struct Product {
  Case c;
  std::string name;
  int64_t cols, per_row, line;
  std::vector<uint8_t> index;
  std::vector<V> val, bias;
  std::vector<T> b;
  std::vector<float> want, size;  // size: the sum of the terms' magnitudes

  Product(const Case& c, const std::string& name) : c(c), name(name), cols(c.groups * c.group), per_row(c.groups * c.keep), bias(values<V>(c.rows)) {
    for (int64_t at = 0; at < c.rows / c.v * c.groups; ++at) {
      std::vector<uint8_t> places(c.group);
      for (int k = 0; k < c.group; ++k) places[k] = static_cast<uint8_t>(k);
      std::shuffle(places.begin(), places.end(), draw);
      std::sort(places.begin(), places.begin() + c.keep);
      index.insert(index.end(), places.begin(), places.begin() + c.keep);
    }
    val = values<V>(c.rows * per_row);
    line = (c.column_major ? cols : c.n) + c.pad;
    b = values<T>((c.column_major ? c.n : cols) * line);
    reckon();
  }

  T& at(int64_t k, int64_t j) { return b[c.column_major ? j * line + k : k * line + j]; }
  int64_t column(int64_t row, int64_t e) const { return e / c.keep * c.group + std::min<int>(index[row / c.v * per_row + e], c.group - 1); }

  void reckon() {
    want.assign(c.rows * c.n, 0);
    size.assign(c.rows * c.n, 0);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t j = 0; j < c.n; ++j) {
        float sum = 0, magnitudes = 0;
        for (int64_t e = 0; e < per_row; ++e) {
          const float w = widen(val[r * per_row + e]), x = widen(at(column(r, e), j));
          sum = std::fmaf(w, x, sum);
          magnitudes += std::abs(w * x);
        }
        T rounded;
        narrow(c.bias ? sum + widen(bias[r]) : sum, rounded);
        want[r * c.n + j] = widen(rounded);
        size[r * c.n + j] = magnitudes + std::abs(want[r * c.n + j]);
      }
  }

  void run(const std::string& algo, const std::vector<int32_t>& flags = {}) {
    const Device<uint8_t> d_index(index, c.shift);
    const Device<int32_t> d_flags(flags, 0);
    const Device<V> d_val(val, c.shift), d_bias(bias, c.shift);
    const Device<T> d_b(b, c.shift), d_out(std::vector<T>(want.size()), c.shift & 2);
    NmArgs a = {};
    a.val = d_val.get(), a.b = d_b.get(), a.out = d_out.get(), a.index = d_index.get();
    a.bias = c.bias ? d_bias.get() : nullptr;
    a.guard = flags.empty() ? nullptr : d_flags.get(), a.guards = static_cast<int32_t>(flags.size());
    a.rows = c.rows, a.cols = cols, a.n = c.n, a.nnz = static_cast<int64_t>(val.size());
    a.b_row = c.column_major ? 1 : line, a.b_col = c.column_major ? line : 1;
    a.out_row = c.n, a.out_col = 1;
    a.type = type_of<T>, a.val_type = a.bias_type = type_of<V>;
    a.per_row = per_row, a.v = c.v, a.keep = c.keep, a.group = c.group, a.by_keep = divisor(c.keep);
    const DeviceProps props = {1, c.shared};
    if (algo == "densify") return densify(a, props);
    const bool mma = algo == "mma";
    if (mma && !mma_serves(a)) return;
    if (algo == "staged") {
      const StagedPlan plan = plan_nm_staged(a.rows, cols, a.n, sizeof(T), a.v, a.keep, a.group, props);
      if (!staged_fits(plan, a.rows, a.n, a.nnz)) return;
    }
    const Device<unsigned char> workspace(std::vector<unsigned char>(mma ? nm_mma_workspace_bytes(a) : nm_scalar_workspace_bytes(a), 7), 0);
    REQUIRE_CUDA(mma                ? launch_nm_mma(a, workspace.get(), nullptr)
                 : algo == "staged" ? launch_nm_staged(a, props, nullptr)
                                    : launch_nm_scalar(a, workspace.get(), props, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    const bool closed = !flags.empty() && std::all_of(flags.begin(), flags.end(), [](int32_t f) { return f == 0; });
    const std::vector<T> got = d_out.read();
    for (size_t i = 0; i < want.size(); ++i) {
      const float here = widen(got[i]), right = closed ? 0 : want[i];
      const float slack = mma ? size[i] * (per_row * 0x1p-22f + (std::is_same<T, __half>::value ? 0x1p-10f : 0x1p-7f)) : 0;
      if (std::isnan(here) && std::isnan(right)) continue;
      if (here == right || std::abs(here - right) <= slack) continue;
      std::printf("%s, %s: row %ld, column %ld: got %.9g, expected %.9g\n", name.c_str(), algo.c_str(), static_cast<long>(i / c.n),
                  static_cast<long>(i % c.n), here, right);
      std::exit(1);
    }
    (void)workspace.read();
    ++launches;
    staged_launches += algo == "staged";
    mma_launches += mma;
  }

  void densify(const NmArgs& a, const DeviceProps& props) {
    const int64_t group = 16 / sizeof(T), width = (cols + group - 1) / group * group;
    const Device<T> dense(std::vector<T>(c.rows * width), 0);
    const Device<int32_t> flags(std::vector<int32_t>(densify_checks(props), 9), 0);
    REQUIRE_CUDA(launch_nm_densify(a, dense.get(), width, flags.get(), props, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    std::vector<float> right(c.rows * width, 0);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t e = 0; e < per_row; ++e) {
        T rounded;
        narrow(widen(val[r * per_row + e]), rounded);
        right[r * width + column(r, e)] = widen(rounded);
      }
    const std::vector<T> got = dense.read();
    for (size_t i = 0; i < got.size(); ++i)
      if (widen(got[i]) != right[i]) std::printf("%s, densify: element %zu\n", name.c_str(), i), std::exit(1);
    bool finite = true, said = true;
    for (int64_t k = 0; k < cols; ++k)
      for (int64_t j = 0; j < c.n; ++j) finite &= std::isfinite(widen(at(k, j)));
    for (const int32_t f : flags.read()) said &= f == 0;
    if (finite != said) std::printf("%s: flags\n", name.c_str()), std::exit(1);
    ++launches;
  }
};

template <class T, class V>
void check(const std::string& types) {
  const std::vector<Case> cases = {{7, 11, 64, 1, 8},
                                   {6, 9, 37, 2, 8, 1, false, true, 1},
                                   {8, 20, 70, 1, 4, 4, true, true},
                                   {12, 13, 33, 3, 7, 4, false, false, 3, 5},
                                   {6, 5, 40, 1, 16, 3, true, true, 8},
                                   {5, 3, 1, 2, 33, 1, false, true},
                                   {4, 2, 17, 1, 64, 2},
                                   {4, 2, 17, 1, 64, 1, false, false, 0, 0, 99 * 1024},
                                   {16, 23, 136, 3, 8, 16, false, true, 0, 8},
                                   {64, 20, 128, 2, 16, 32},
                                   {64, 9, 130, 4, 8, 64, true, true},
                                   {64, 4, 40, 8, 16, 64, false, true, 1},
                                   {3, 4, 9, 4, 4},
                                   {4, 0, 5, 1, 4, 1, false, true},
                                   {0, 4, 5, 1, 4},
                                   {5, 4, 0, 1, 4}};
  for (size_t i = 0; i < cases.size(); ++i) {
    Product<T, V> product(cases[i], types + ", case " + std::to_string(i));
    for (const char* algo : {"scalar", "staged", "mma", "densify"}) product.run(algo);
    if (product.cols < 2 || cases[i].n < 2 || product.index.empty()) continue;
    // NaN and inf, where rows have no entry too: nothing of them may show there. And a position that is none.
    narrow(INFINITY, product.at(product.cols - 1, cases[i].n - 1));
    narrow(NAN, product.at(1, 0));
    product.index[product.index.size() / 2 / product.per_row * product.per_row + product.per_row - 1] = 255;
    product.reckon();
    for (const char* algo : {"scalar", "staged", "mma", "densify"}) product.run(algo);
    product.run("scalar", {0, 0, 1});
    product.run("scalar", {0, 0, 0});
  }
}

#ifdef __CUDACC__
// 4096 x 4096 at N = 512: what the bounds are about; gb_per_s counts the gathered bytes.
template <class T>
void bench(const char* type, int keep, int group, int64_t v) {
  const DeviceProps props = this_device();
  const int64_t side = 4096, n = 512, per_row = side / group * keep;
  std::vector<uint8_t> index(side / v * per_row);
  for (size_t e = 0; e < index.size(); ++e) index[e] = static_cast<uint8_t>((draw() % (group / keep)) + e % keep * (group / keep));
  const Device<uint8_t> d_index(index, 0);
  const Device<T> val(values<T>(side * per_row), 0), b(values<T>(side * n), 0), out(std::vector<T>(side * n), 0);
  NmArgs a = {};
  a.val = val.get(), a.b = b.get(), a.out = out.get(), a.index = d_index.get();
  a.rows = a.cols = side, a.n = a.b_row = a.out_row = n, a.nnz = side * per_row, a.b_col = a.out_col = 1;
  a.type = a.val_type = a.bias_type = type_of<T>;
  a.per_row = per_row, a.v = v, a.keep = keep, a.group = group, a.by_keep = divisor(keep);
  for (const char* algo : {"scalar", "staged", "mma"}) {
    if (*algo == 'm' && !mma_serves(a)) continue;
    const float us = median_us([&] {
      return *algo == 'm'     ? launch_nm_mma(a, nullptr, nullptr)
             : algo[1] == 't' ? launch_nm_staged(a, props, nullptr)
                              : launch_nm_scalar(a, nullptr, props, nullptr);
    });
    std::printf("{\"op\": \"nm_spmm %s %s\", \"shape\": \"4096x4096x512, %ld:%d:%d\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", algo, type,
                static_cast<long>(v), keep, group, us, a.nnz / v * n * sizeof(T) / us * 1e-3);
  }
}
#endif

}  // namespace

int main(int argc, char** argv) {
#ifdef __CUDACC__
  if (wants_bench(argc, argv)) {
    bench<float>("fp32", 1, 8, 1), bench<float>("fp32", 1, 16, 1), bench<float>("fp32", 1, 8, 4);
    bench<__half>("fp16", 1, 16, 1), bench<__half>("fp16", 2, 16, 64), bench<__nv_bfloat16>("bf16", 2, 16, 64);
    return 0;
  }
#else
  wants_bench(argc, argv);
#endif
  check<float, float>("fp32");
  check<__nv_bfloat16, __nv_bfloat16>("bf16");
  check<__half, __half>("fp16");
  check<__half, float>("fp16, fp32 values");
  // More rows than a block has at first: two rows for each group of lanes, and a second block.
  Product<float, float>({600, 10, 5, 1, 4}, "600 rows").run("staged");
  Product<float, float>({600, 10, 5, 1, 4, 4}, "600 rows, four together").run("staged");
  if (staged_launches < 60 || mma_launches < 12) std::printf("too few: %d staged, %d on tensor cores\n", staged_launches, mma_launches), std::exit(1);
  std::printf("ok: %d launches agree\n", launches);
}
