// The layout of tensor lists over a persistent grid: every element once, and blocks level, without any kernel.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cuda/launch.h"

using namespace sparsekern::cuda;

namespace {

struct Entry {
  int64_t numel;
  int32_t first;
};

// The 161 parameters of a ResNet-50.
std::vector<int64_t> resnet50() {
  std::vector<int64_t> sizes;
  const auto conv = [&](int64_t out, int64_t in, int64_t window) { sizes.insert(sizes.end(), {out * in * window, out, out}); };
  conv(64, 3, 49);
  int64_t in = 64;
  const int64_t blocks[] = {3, 4, 6, 3};
  for (int stage = 0; stage < 4; ++stage)
    for (int64_t b = 0, width = int64_t(64) << stage; b < blocks[stage]; ++b) {
      conv(width, in, 1);
      conv(width, width, 9);
      conv(4 * width, width, 1);
      if (b == 0) conv(4 * width, in, 1);
      in = 4 * width;
    }
  sizes.insert(sizes.end(), {2048 * 1000, 1000});
  return sizes;
}

std::vector<Entry> entries_of(const std::vector<int64_t>& sizes) {
  std::vector<Entry> entries;
  for (int64_t n : sizes) entries.push_back({n, -1});
  return entries;
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

// Block b does pieces b, b + grid, ...; a piece takes its elements and `start`. The elements shared out evenly over the longest block's time.
double balance(const std::vector<Entry>& entries, const ListPlan& plan, int64_t start) {
  std::vector<int64_t> load(plan.grid, 0);
  int64_t total = 0;
  for (int64_t k = 0; k < plan.pieces; ++k) {
    const Piece p = piece_at(entries.data(), plan, k);
    load[k % plan.grid] += p.end - p.begin + start;
    total += p.end - p.begin;
  }
  int64_t longest = 0;
  for (int64_t l : load) longest = l > longest ? l : longest;
  return static_cast<double>(total) / plan.grid / longest;
}

void covers_every_element_once() {
  std::mt19937 draw(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> sizes(1 + draw() % 40);
    for (int64_t& n : sizes) n = draw() % 3 == 0 ? draw() % 40000 : draw() % 2000;
    std::vector<Entry> entries = entries_of(sizes);
    const ListPlan plan = plan_list(entries.data(), entries.size(), {1 + static_cast<int>(draw() % 140)}, 1 + draw() % 8);
    require(plan.piece % 1024 == 0 && plan.grid >= 1 && plan.grid <= plan.pieces, "sizes of the plan");
    std::vector<int64_t> done(sizes.size(), 0), pieces(sizes.size(), 0);
    for (int64_t k = 0; k < plan.pieces; ++k) {
      const Piece p = piece_at(entries.data(), plan, k);
      require(p.begin % plan.piece == 0 && p.begin <= p.end && p.end <= sizes[p.tensor] && p.end - p.begin <= plan.piece, "bounds of a piece");
      done[p.tensor] += p.end - p.begin;
      ++pieces[p.tensor];
    }
    for (size_t t = 0; t < sizes.size(); ++t) require(done[t] == sizes[t] && pieces[t] == sizes[t] / plan.piece + 1, "every piece once");
  }
}

void large_tensors_stay_in_64_bits() {
  std::vector<Entry> entries = entries_of({int64_t(5) << 32, 7});
  const ListPlan plan = plan_list(entries.data(), 2, {132}, 4);
  const Piece last = piece_at(entries.data(), plan, plan.whole - 1);
  require(last.tensor == 0 && last.end == int64_t(5) << 32 && last.begin == last.end - plan.piece, "the last piece of 21 G elements");
  require(piece_at(entries.data(), plan, plan.whole + 1).end == 7, "the remainder behind it");
}

void splits_evenly() {
  std::vector<Entry> entries = entries_of(std::vector<int64_t>(1000, 1));
  std::vector<size_t> parts;
  const auto take = [&](Entry*, size_t n) { return parts.push_back(n), 0; };
  require(each_launch(entries.data(), 1000, 672, take) == 0 && parts == std::vector<size_t>{500, 500}, "two launches of 500");
  parts.clear();
  require(each_launch(entries.data(), 0, 672, take) == 0 && parts.empty(), "nothing to launch");
  require(each_launch(entries.data(), 1000, 672, [&](Entry*, size_t) { return 9; }) == 9, "the first error comes back");
}

}  // namespace

int main() {
  covers_every_element_once();
  large_tensors_stay_in_64_bits();
  splits_evenly();
  const std::vector<int64_t> sizes = resnet50();
  int64_t total = 0;
  for (int64_t n : sizes) total += n;
  require(sizes.size() == 161 && total == 25557032, "the parameters of a ResNet-50");
  double worst = 1;
  for (int sms : {56, 72, 78, 80, 84, 108, 114, 132, 144, 148})
    for (int blocks : {2, 3, 4}) {
      std::vector<Entry> entries = entries_of(sizes);
      const ListPlan plan = plan_list(entries.data(), entries.size(), {sms}, blocks);
      const double level = balance(entries, plan, 0), makespan = balance(entries, plan, kPieceCost);
      if (sms == 132)
        std::printf("ResNet-50, %d SMs x %d blocks: pieces of %d, %.1f%% of ideal, %.1f%% with the start of pieces\n", sms, blocks, plan.piece,
                    100 * level, 100 * makespan);
      require(sms != 132 || makespan >= 0.95, "132 SMs: at least 95% of ideal with the start of pieces");
      worst = level < worst ? level : worst;
    }
  std::printf("worst of all grids: %.1f%%\n", 100 * worst);
  require(worst >= 0.95, "at least 95% of ideal");
  std::printf("ok\n");
}
