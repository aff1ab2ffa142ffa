// Runs the kernels of csr_spmm and csr_spmm_t without Python or torch. A sum is a chain of fused multiply-adds in column
// order, so all algorithms must agree with a plain loop bit for bit. How to build it: check.h.
#include "check.h"
#include "cuda/csr_densify.cu"
#include "cuda/csr_spmm.cu"
#include "cuda/csr_spmm_staged.cu"

using namespace sparsekern::cuda;

namespace {

template <class T>
constexpr SpmmType type_of = dtype_of<T> == DType::f32    ? SpmmType::f32
                             : dtype_of<T> == DType::bf16 ? SpmmType::bf16
                                                          : SpmmType::f16;
int launches = 0;

void fail(const std::string& name, const char* what, int64_t row, int64_t column, float got, float want) {
  std::printf("%s: %s: row %ld, column %ld: got %.9g, expected %.9g\n", name.c_str(), what, static_cast<long>(row), static_cast<long>(column), got,
              want);
  std::exit(1);
}

struct Case {
  int64_t rows, cols, n;
  double sparsity;
  bool column_major = false, out_column_major = false, permuted = false, ordered = false, bias = false, wide = false;
  size_t shift = 0;   // elements by which operands are misaligned; 1: all but the result
  int64_t pad = 0;    // between lines of b
  int shared = 8192;  // a small device: K-tiles of few rows
};

// T: b and out. V: values and bias.
template <class T, class V>
struct Product {
  Case c;
  std::string name;
  std::vector<int32_t> crow{0}, col, perm, order;
  std::vector<int64_t> wide_crow;
  std::vector<V> val, bias;
  std::vector<T> b;
  int64_t line;  // between lines of b
  std::vector<float> want;

  Product(const Case& c, const std::string& name) : c(c), name(name), bias(values<V>(c.rows)) {
    for (int64_t r = 0; r < c.rows; ++r) {
      const double keep = r % 5 == 4 ? 0 : r % 7 == 3 ? 1 : 1 - c.sparsity;  // empty, full and other rows
      for (int64_t k = 0; k < c.cols; ++k)
        if (uniform() * 0.5 + 0.5 < keep) col.push_back(static_cast<int32_t>(k));
      crow.push_back(static_cast<int32_t>(col.size()));
      order.push_back(static_cast<int32_t>(r));
    }
    wide_crow.assign(crow.begin(), crow.end());
    for (size_t e = 0; e < col.size(); ++e) perm.push_back(static_cast<int32_t>(e));
    std::shuffle(perm.begin(), perm.end(), draw);
    std::shuffle(order.begin(), order.end(), draw);
    val = values<V>(col.size());
    line = (c.column_major ? c.cols : c.n) + c.pad;
    b = values<T>(static_cast<size_t>((c.column_major ? c.n : c.cols) * line));
    reckon();
  }

  T& at(int64_t k, int64_t j) { return b[c.column_major ? j * line + k : k * line + j]; }

  void reckon() {
    want.assign(c.rows * c.n, 0);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t j = 0; j < c.n; ++j) {
        float sum = 0;
        for (int32_t e = crow[r]; e < crow[r + 1]; ++e) sum = std::fmaf(widen(val[c.permuted ? perm[e] : e]), widen(at(col[e], j)), sum);
        T rounded;
        narrow(c.bias ? sum + widen(bias[r]) : sum, rounded);
        want[r * c.n + j] = widen(rounded);
      }
  }

  void run(const char* what, const std::vector<int32_t>& flags = {}) {
    const Device<int32_t> d_crow(crow, 1), d_col(col, c.shift), d_perm(perm, c.shift), d_order(order, 0), d_flags(flags, 0);
    const Device<int64_t> d_wide(wide_crow, 1);
    const Device<V> d_val(val, c.shift), d_bias(bias, c.shift);
    const Device<T> d_b(b, c.shift), d_out(std::vector<T>(want.size()), c.shift & 2);
    SpmmArgs a = {};
    a.crow = c.wide ? static_cast<const void*>(d_wide.get()) : d_crow.get();
    a.wide_crow = c.wide;
    a.col = d_col.get(), a.val = d_val.get(), a.b = d_b.get(), a.out = d_out.get();
    a.perm = c.permuted ? d_perm.get() : nullptr;
    a.row_order = c.ordered ? d_order.get() : nullptr;
    a.bias = c.bias ? d_bias.get() : nullptr;
    a.guard = flags.empty() ? nullptr : d_flags.get(), a.guards = static_cast<int32_t>(flags.size());
    a.rows = c.rows, a.cols = c.cols, a.n = c.n, a.nnz = static_cast<int64_t>(col.size());
    a.b_row = c.column_major ? 1 : line, a.b_col = c.column_major ? line : 1;
    a.out_row = c.out_column_major ? 1 : c.n, a.out_col = c.out_column_major ? c.rows : 1;
    a.type = type_of<T>, a.val_type = a.bias_type = type_of<V>;
    const DeviceProps props = {1, c.shared};
    const std::string algo = what;
    if (algo == "densify") return densify(a, d_b, props);
    const bool staged = algo == "staged";
    const Device<unsigned char> workspace(std::vector<unsigned char>(staged ? spmm_staged_workspace_bytes(a) : spmm_scalar_workspace_bytes(a), 7), 0);
    REQUIRE_CUDA((staged ? launch_spmm_staged : launch_spmm_scalar)(a, workspace.get(), props, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    const bool closed = !flags.empty() && std::all_of(flags.begin(), flags.end(), [](int32_t f) { return f == 0; });
    const std::vector<T> got = d_out.read();
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t j = 0; j < c.n; ++j) {
        const float here = widen(got[c.out_column_major ? j * c.rows + r : r * c.n + j]), right = closed ? 0 : want[r * c.n + j];
        if (std::memcmp(&here, &right, 4) != 0 && !(std::isnan(here) && std::isnan(right))) fail(name, what, r, j, here, right);
      }
    (void)workspace.read();
    ++launches;
  }

  void densify(const SpmmArgs& a, const Device<T>& d_b, const DeviceProps& props) {
    const int64_t group = 16 / sizeof(T), width = (c.cols + group - 1) / group * group;
    const Device<T> dense(std::vector<T>(c.rows * width), 0);
    const Device<int32_t> flags(std::vector<int32_t>(densify_checks(props), 9), 0);
    REQUIRE_CUDA(launch_csr_densify(a, dense.get(), width, flags.get(), props, nullptr));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    std::vector<float> right(c.rows * width, 0);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int32_t e = crow[r]; e < crow[r + 1]; ++e) {
        T rounded;
        narrow(widen(val[c.permuted ? perm[e] : e]), rounded);
        right[r * width + col[e]] = widen(rounded);
      }
    const std::vector<T> got = dense.read();
    for (size_t i = 0; i < got.size(); ++i)
      if (widen(got[i]) != right[i]) fail(name, "densify", i / width, i % width, widen(got[i]), right[i]);
    bool finite = true, said = true;
    for (int64_t k = 0; k < c.cols; ++k)
      for (int64_t j = 0; j < c.n; ++j) finite &= std::isfinite(widen(at(k, j)));
    for (const int32_t f : flags.read()) said &= f == 0;
    if (finite != said) fail(name, "flags", 0, 0, said, finite);
    (void)d_b.read();
    ++launches;
  }
};

template <class T, class V>
void check(const std::string& types) {
  const std::vector<Case> cases = {{7, 90, 64, 0.5},
                                   {5, 130, 37, 0.7, false, false, true, true, true},
                                   {9, 77, 70, 0.6, true, true, false, false, true, true},
                                   {6, 64, 8, 0.5, true, false, true},
                                   {4, 50, 1, 0.3, false, false, false, true, true, true},
                                   {3, 200, 40, 0.9, false, true, false, false, false, false, 1},
                                   {6, 90, 33, 0.4, true, false, false, false, true, false, 3, 5},
                                   {8, 72, 48, 0.4, false, false, false, false, false, false, 0, 8},
                                   {1, 1, 3, 0.0},
                                   {4, 0, 5, 0.5, false, false, false, false, true},
                                   {0, 9, 5, 0.5},
                                   {5, 9, 0, 0.5}};
  for (size_t i = 0; i < cases.size(); ++i) {
    Product<T, V> product(cases[i], types + ", case " + std::to_string(i));
    for (const char* algo : {"scalar", "staged", "densify"}) product.run(algo);
    if (cases[i].cols < 2 || cases[i].n < 2) continue;
    // NaN and inf, where rows have no entry too: nothing of them may show there.
    narrow(INFINITY, product.at(cases[i].cols - 1, cases[i].n - 1));
    narrow(NAN, product.at(1, 0));
    product.reckon();
    for (const char* algo : {"scalar", "staged", "densify"}) product.run(algo);
    product.run("scalar", {0, 0, 1});
    product.run("scalar", {0, 0, 0});
  }
}

#ifdef __CUDACC__
// Random 4096 x 4096 at N = 512 and 4096; gb_per_s counts the gathered bytes.
template <class T>
void bench(const char* type) {
  const DeviceProps props = this_device();
  const int64_t side = 4096;
  for (const int64_t n : {512, 4096})
    for (const double sparsity : {0.9, 0.95, 0.98, 0.99}) {
      std::vector<int32_t> crow{0}, col;
      for (int64_t r = 0; r < side; ++r) {
        for (int64_t k = 0; k < side; ++k)
          if (draw() % 10000 >= sparsity * 10000) col.push_back(static_cast<int32_t>(k));
        crow.push_back(static_cast<int32_t>(col.size()));
      }
      const Device<int32_t> d_crow(crow, 0), d_col(col, 0);
      const Device<T> val(values<T>(col.size()), 0), b(values<T>(side * n), 0), out(std::vector<T>(side * n), 0);
      SpmmArgs a = {};
      a.crow = d_crow.get(), a.col = d_col.get(), a.val = val.get(), a.b = b.get(), a.out = out.get();
      a.rows = a.cols = side, a.n = a.b_row = a.out_row = n, a.nnz = static_cast<int64_t>(col.size()), a.b_col = a.out_col = 1;
      a.type = a.val_type = a.bias_type = type_of<T>;
      for (const bool staged : {false, true}) {
        const float us = median_us([&] { return (staged ? launch_spmm_staged : launch_spmm_scalar)(a, nullptr, props, nullptr); });
        std::printf("{\"op\": \"csr_spmm %s %s\", \"shape\": \"4096x4096x%ld at %.2f\", \"us\": %.1f, \"gb_per_s\": %.0f}\n",
                    staged ? "staged" : "scalar", type, static_cast<long>(n), sparsity, us, col.size() * n * sizeof(T) / us * 1e-3);
      }
    }
}
#endif

}  // namespace

int main(int argc, char** argv) {
#ifdef __CUDACC__
  if (wants_bench(argc, argv)) return bench<float>("fp32"), bench<__nv_bfloat16>("bf16"), 0;
#else
  wants_bench(argc, argv);
#endif
  check<float, float>("fp32");
  check<__nv_bfloat16, __nv_bfloat16>("bf16");
  check<__half, float>("fp16, fp32 values");
  // More rows than a block has at first: two rows for each group of lanes, and a second block.
  Product<float, float> tall({600, 40, 5, 0.95, false, true, false, true}, "600 rows");
  tall.run("staged");
  tall.run("scalar");
  std::printf("ok: %d launches agree bit for bit\n", launches);
}
