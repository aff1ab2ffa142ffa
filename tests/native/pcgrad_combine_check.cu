// Runs the kernels of task_gram and pcgrad_combine without Python or torch against plain loops in double. check.h says how
// to build and run it.
#include "cuda/pcgrad_combine.cu"

#include <memory>

#include "check.h"

using namespace sparsekern;
using namespace sparsekern::cuda;

namespace {

void require(bool holds, const char* what, int tasks, int64_t at) {
  if (holds) return;
  std::printf("%s: wrong with %d tasks, at %ld\n", what, tasks, static_cast<long>(at));
  std::exit(1);
}

void every_pair_has_a_tile() {
  for (int tasks = 1; tasks <= kMaxTasks; ++tasks) {
    std::vector<char> seen(tasks * tasks, 0);
    for (int k = 0; k < gram_tiles(tasks); ++k) {
      const GramTile tile = gram_tile(tasks, k);
      for (int a : tile.task)
        for (int b : tile.task)
          if (a >= 0 && b >= 0) require(a < tasks && b < tasks, "tiles", tasks, k), seen[a * tasks + b] = 1;
    }
    for (size_t k = 0; k < seen.size(); ++k) require(seen[k], "tiles", tasks, static_cast<int64_t>(k));
  }
}

template <class G>
struct Lists {
  int tasks;
  std::vector<std::vector<G>> rows;  // [tensor * tasks + task]
  std::vector<std::unique_ptr<Device<G>>> device, out;
  std::vector<const void*> data;
  std::vector<TaskEntry> entries;

  Lists(int tasks, const std::vector<size_t>& sizes, bool shifted) : tasks(tasks) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const std::vector<G> shared = values<G>(sizes[i]);
      for (int t = 0; t < tasks; ++t) {
        std::vector<G> row = values<G>(sizes[i]);
        for (size_t k = 0; k < row.size(); ++k) narrow(widen(row[k]) + (t % 2 ? -0.5f : 0.5f) * widen(shared[k]), row[k]);
        rows.push_back(row);
        device.push_back(std::make_unique<Device<G>>(row, shifted ? (i + t) % 4 : 0));
        data.push_back(device.back()->get());
      }
      out.push_back(std::make_unique<Device<G>>(std::vector<G>(sizes[i]), 0));
      entries.push_back({out.back()->get(), static_cast<int64_t>(sizes[i]), 0, 0});
    }
  }

  // The products by `sms` multiprocessors, all tiles one after the other.
  int launch_products(const PcgradWorkspace& w, int64_t total, const DeviceProps& props) {
    for (int k = 0; k < gram_tiles(tasks); ++k) {
      const GramTile tile = gram_tile(tasks, k);
      if (const int s = launch_task_gram(entries.data(), entries.size(), data.data(), tasks, tile, dtype_of<G>, w.slots, 0, total, props, nullptr))
        return s;
      if (const int s = launch_gram_sum(w.slots, total, tasks, tile, w.gram, nullptr, nullptr)) return s;
    }
    return 0;
  }
};

int cases = 0;

template <class G>
void check(int tasks, const std::vector<size_t>& sizes, bool shifted) {
  Lists<G> lists(tasks, sizes, shifted);
  const int64_t total = gram_slots(lists.entries.data(), lists.entries.size());
  Device<unsigned char> workspace(std::vector<unsigned char>(pcgrad_workspace_bytes(tasks, total)), 0);
  const PcgradWorkspace w(workspace.get(), tasks);
  std::vector<double> gram(tasks * tasks), before;
  for (const int sms : {3, 1}) {
    REQUIRE_CUDA(lists.launch_products(w, total, {sms}));
    REQUIRE_CUDA(cudaDeviceSynchronize());
    REQUIRE_CUDA(cudaMemcpy(gram.data(), w.gram, gram.size() * sizeof(double), cudaMemcpyDeviceToHost));
    if (sms == 3) before = gram;
  }
  require(before == gram, "sums that depend on the number of SMs", tasks, 0);
  for (int i = 0; i < tasks; ++i)
    for (int j = 0; j < tasks; ++j) {
      double want = 0, size = 0;
      for (size_t t = 0; t < sizes.size(); ++t)
        for (size_t k = 0; k < sizes[t]; ++k) {
          const double product = static_cast<double>(widen(lists.rows[t * tasks + i][k])) * widen(lists.rows[t * tasks + j][k]);
          want += product, size += std::fabs(product);
        }
      require(std::fabs(gram[i * tasks + j] - want) <= 1e-5 * size, "product", tasks, i * tasks + j);
    }

  std::vector<int64_t> visits;
  for (int i = 0; i < tasks; ++i)
    for (int s = 0; s < tasks - 1; ++s) visits.push_back((i + 1 + s) % tasks);
  const Device<int64_t> order(visits, 0);
  REQUIRE_CUDA(launch_pcgrad_weights(w.gram, order.get(), tasks, true, w.weights, nullptr));
  REQUIRE_CUDA(launch_pcgrad_combine(lists.entries.data(), sizes.size(), lists.data.data(), tasks, dtype_of<G>, w.weights, {1}, nullptr));
  REQUIRE_CUDA(cudaDeviceSynchronize());
  std::vector<double> row(tasks), weights(tasks, 0);
  for (int i = 0; i < tasks; ++i) {
    project_row(gram.data(), tasks, visits.data() + i * (tasks - 1), i, row.data(), 1);
    for (int k = 0; k < tasks; ++k) weights[k] += row[k];
  }
  for (size_t t = 0; t < sizes.size(); ++t) {
    const std::vector<G> out = lists.out[t]->read();
    for (size_t k = 0; k < sizes[t]; ++k) {
      float sum = 0;
      for (int a = 0; a < tasks; ++a) {
        const float weight = static_cast<float>(weights[a] / tasks), x = widen(lists.rows[t * tasks + a][k]);
        volatile float first = x * weight;
        sum = a == 0 ? first : std::fma(x, weight, sum);
      }
      G want;
      narrow(sum, want);
      require(std::memcmp(&want, &out[k], sizeof(G)) == 0, "combination", tasks, static_cast<int64_t>(k));
    }
  }
  for (const auto& d : lists.device) (void)d->read();
  (void)workspace.read();
  ++cases;
}

#ifdef __CUDACC__
void bench() {
  for (const int tasks : {2, 4, 8}) {
    const size_t n = 2 << 20, count = 12;
    Lists<float> lists(tasks, std::vector<size_t>(count, n), false);
    const int64_t total = gram_slots(lists.entries.data(), count);
    Device<unsigned char> workspace(std::vector<unsigned char>(pcgrad_workspace_bytes(tasks, total)), 0);
    std::vector<int64_t> visits;
    for (int i = 0; i < tasks; ++i)
      for (int s = 0; s < tasks - 1; ++s) visits.push_back((i + 1 + s) % tasks);
    const Device<int64_t> order(visits, 0);
    const PcgradWorkspace w(workspace.get(), tasks);
    const DeviceProps props = this_device();
    const auto print = [&](const char* op, double bytes, float us) {
      std::printf("{\"op\": \"%s\", \"shape\": \"%d tasks, %zu x %zu\", \"us\": %.1f, \"gb_per_s\": %.0f}\n", op, tasks, count, n, us,
                  bytes * static_cast<double>(n * count) / us * 1e-3);
    };
    print("task_gram", 4 * tasks, median_us([&] { return lists.launch_products(w, total, props); }));
    print("pcgrad_combine", 8 * tasks + 4, median_us([&] {
            int status = lists.launch_products(w, total, props);
            if (!status) status = launch_pcgrad_weights(w.gram, order.get(), tasks, false, w.weights, nullptr);
            return status ? status
                          : launch_pcgrad_combine(lists.entries.data(), count, lists.data.data(), tasks, DType::f32, w.weights, props, nullptr);
          }));
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
  every_pair_has_a_tile();
  const std::vector<size_t> sizes = {0, 1, 3, 8, 33, 1023, 4096, 4101};
  for (const int tasks : {1, 2, 3, 8}) check<float>(tasks, sizes, tasks != 2);
  check<__nv_bfloat16>(2, sizes, false);
  check<__nv_bfloat16>(4, sizes, true);
  check<__half>(5, sizes, false);
  check<float>(9, {7, 40}, true);
  check<float>(2, std::vector<size_t>(65, 5), true);
  std::printf("ok: %d rounds\n", cases);
}
