// Pieces and registration of channel_scores; the sums are in channel_scores.h.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/score_lists.h"

#define SK_KERNEL_FILE "cpu/channel_scores.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr int64_t kShare = 1 << 15;  // elements of a unit: several short rows, or a part of a long one; a multiple of kScoreBlock

struct Units {
  int64_t rows, parts, count;  // rows of a unit, parts of a row, units of the tensor

  explicit Units(const ScoreView& v)
      : rows(std::max<int64_t>(1, kShare / std::max<int64_t>(1, v.row_size))),
        parts(std::max<int64_t>(1, (v.row_size + kShare - 1) / kShare)),
        count((v.rows + rows - 1) / rows * parts) {}
};

std::vector<at::Tensor> channel_scores_cpu(at::TensorList weights, at::TensorList masks_a, std::optional<at::TensorList> masks_b, double beta) {
  ScoreLists lists(weights, masks_a, masks_b);
  std::vector<Units> units;
  std::vector<int64_t> first = {0}, slot = {0};  // of each tensor: its first unit, its first pair of sums
  int64_t elements = 0;
  for (size_t t = 0; t < lists.size(); ++t) {
    units.emplace_back(lists[t]);
    first.push_back(first.back() + units[t].count);
    slot.push_back(slot.back() + lists[t].rows * units[t].parts);
    elements += lists[t].rows * lists[t].row_size;
  }
  std::vector<double> sums(2 * slot.back());
  // Short lists stay on one thread: starting the others costs more than 64K elements of work.
  const int64_t grain = std::max<int64_t>(1, 2 * kShare * first.back() / std::max<int64_t>(1, elements));
  at::parallel_for(0, first.back(), grain, [&](int64_t from, int64_t to) {
    for (int64_t unit = from; unit < to; ++unit) {
      const size_t t = std::upper_bound(first.begin(), first.end(), unit) - first.begin() - 1;
      const ScoreView& v = lists[t];
      const Units& u = units[t];
      const int64_t row = (unit - first[t]) / u.parts * u.rows, part = (unit - first[t]) % u.parts, begin = part * kShare;
      for_float(kChannelScores, "weights", v.type, [&](auto zero) {
        using T = decltype(zero);
        SK_PICK(score_rows<T>)
        (static_cast<const T*>(v.weight), v.a, v.b, lists.has_b, v.row_size, row, std::min(row + u.rows, v.rows), begin,
         std::min(begin + kShare, v.row_size), sums.data() + 2 * (slot[t] + row * u.parts + part), 2 * u.parts);
      });
    }
  });
  for (size_t t = 0; t < lists.size(); ++t) {
    const ScoreView& v = lists[t];
    const double* of_row = sums.data() + 2 * slot[t];
    for (int64_t row = 0; row < v.rows; ++row) {
      double a = 0, b = 0;
      for (int64_t part = 0; part < units[t].parts; ++part, of_row += 2) a += of_row[0], b += of_row[1];
      const double score = lists.has_b ? beta * a + (1 - beta) * b : beta * a;
      if (v.type == at::kDouble) static_cast<double*>(v.out)[row] = score;
      else static_cast<float*>(v.out)[row] = static_cast<float>(score);
    }
  }
  return std::move(lists.out);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("channel_scores", &channel_scores_cpu); }

}  // namespace sparsekern
