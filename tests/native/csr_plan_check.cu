// Runs csr_plan, the running sums and the sort under it without Python or torch against plain loops.
#include "cuda/csr_plan.cu"

#include "cuda/device_scan.cu"
#include "cuda/device_sort.cu"

#include <numeric>

#include "csr_check.h"

using namespace sparsekern::cuda;

namespace {

const DeviceProps kProps = {1};

void check_scan(size_t count, size_t shift) {
  std::vector<Count> in(count), want(count);
  for (Count& x : in) x = draw() >> 30;
  std::partial_sum(in.begin(), in.end(), want.begin());
  const Device<Count> d_in(in, shift), out(std::vector<Count>(count), 2 * shift);
  const Device<unsigned char> workspace = workspace_of(scan_workspace_bytes(static_cast<int64_t>(count)));
  REQUIRE_CUDA(launch_scan(d_in.get(), out.get(), static_cast<int64_t>(count), workspace.get(), nullptr));
  REQUIRE_CUDA(launch_scan(d_in.get(), d_in.get(), static_cast<int64_t>(count), workspace.get(), nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  expect("scan of " + std::to_string(count), out.read(), want);
  expect("scan in place of " + std::to_string(count), d_in.read(), want);
  (void)workspace.read();
}

void check_sort(size_t count, int low, int high) {
  std::vector<uint64_t> keys(count);
  std::vector<uint32_t> values(count), order(count);
  for (uint64_t& key : keys) key = draw() & draw();
  std::iota(values.begin(), values.end(), 7);
  std::iota(order.begin(), order.end(), 0);
  const uint64_t mask = (high < 64 ? uint64_t(1) << high : 0) - (uint64_t(1) << low);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  std::vector<uint64_t> want_keys;
  std::vector<uint32_t> want;
  for (const uint32_t i : order) want_keys.push_back(keys[i]), want.push_back(values[i]);
  const Device<uint64_t> d_keys(keys, 0), sorted(std::vector<uint64_t>(count), 0);
  const Device<uint32_t> d_values(values, 0), moved(std::vector<uint32_t>(count), 0);
  const size_t bytes = sort_workspace_bytes(static_cast<int64_t>(count));
  const Device<unsigned char> workspace = workspace_of(bytes);
  REQUIRE_CUDA(
      launch_sort(d_keys.get(), sorted.get(), d_values.get(), moved.get(), static_cast<int64_t>(count), low, high, workspace.get(), bytes, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  expect("sorted keys", sorted.read(), want_keys);
  expect("sorted values", moved.read(), want);
  (void)workspace.read();
}

void check_plan(int64_t rows, int64_t cols, double density, bool wide, size_t shift) {
  const Pattern p(rows, cols, density, wide);
  std::vector<int32_t> order(rows), row_t, perm;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p.crow[a + 1] - p.crow[a] > p.crow[b + 1] - p.crow[b]; });
  std::vector<int64_t> crow_t{0};
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t e = p.crow[r]; e < p.crow[r + 1]; ++e)
        if (p.col[e] == c) row_t.push_back(static_cast<int32_t>(r)), perm.push_back(static_cast<int32_t>(e));
    crow_t.push_back(static_cast<int64_t>(row_t.size()));
  }
  const DevicePattern d(p, shift);
  const Device<int32_t> out_order(std::vector<int32_t>(rows), shift), out_row(std::vector<int32_t>(p.nnz()), shift),
      out_perm(std::vector<int32_t>(p.nnz()), shift), narrow(std::vector<int32_t>(cols + 1), shift);
  const Device<int64_t> out_crow(std::vector<int64_t>(cols + 1), shift);
  const Device<unsigned char> workspace = workspace_of(csr_plan_workspace_bytes(d.view));
  const PlanResult out = {out_order.get(), wide ? static_cast<void*>(out_crow.get()) : narrow.get(), out_row.get(), out_perm.get()};
  REQUIRE_CUDA(launch_csr_plan(d.view, out, workspace.get(), kProps, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  const std::string what = "plan " + std::to_string(rows) + " x " + std::to_string(cols);
  expect(what + ": row_order", out_order.read(), order);
  if (wide) expect(what + ": crow_t", out_crow.read(), crow_t);
  else expect(what + ": crow_t", narrow.read(), std::vector<int32_t>(crow_t.begin(), crow_t.end()));
  expect(what + ": row_t", out_row.read(), row_t);
  expect(what + ": perm", out_perm.read(), perm);
  (void)workspace.read(), (void)d.col.read();
}

#ifdef __CUDACC__
void bench() {
  const DeviceProps props = this_device();
  const Pattern p(4096, 4096, 0.1, false);
  const DevicePattern d(p, 0);
  const Device<int32_t> order(std::vector<int32_t>(4096), 0), row(std::vector<int32_t>(p.nnz()), 0), perm(std::vector<int32_t>(p.nnz()), 0),
      crow(std::vector<int32_t>(4097), 0);
  const Device<unsigned char> workspace = workspace_of(csr_plan_workspace_bytes(d.view));
  const PlanResult out = {order.get(), crow.get(), row.get(), perm.get()};
  const float us = median_us([&] { return launch_csr_plan(d.view, out, workspace.get(), props, nullptr); });
  std::printf("{\"op\": \"csr_plan\", \"shape\": \"4096x4096 at 90 %%\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", us, 80.0 * p.nnz() / us * 1e-3);
}
#else
void bench() {}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (wants_bench(argc, argv)) return bench(), 0;
  for (const size_t count : {0, 1, 2, 1023, 1024, 4095, 4096, 4097, 9001}) check_scan(count, count % 3);
  for (const size_t count : {0, 1, 33, 5000, 70000}) check_sort(count, 0, 64), check_sort(count, 32, 44), check_sort(count, 0, 5);
  check_plan(1, 1, 1, false, 0);
  check_plan(37, 50, 0.3, true, 1);
  check_plan(3, 700, 0.5, false, 2);
  check_plan(300, 5, 0.2, true, 3);
  check_plan(0, 5, 0, false, 0);
  check_plan(5, 0, 0, true, 0);
  std::printf("ok: %d results are exact\n", cases);
}
