// Checks, plan and registration of project_conflict_ and project_conflict_sgd_; the kernels are in project_conflict.h.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <optional>

#include "common/conflict_lists.h"
#include "common/sgd_scalars.h"
#include "cpu/pieces.h"
#include "cpu/sgd_lists.h"

#define SK_KERNEL_FILE "cpu/project_conflict.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

struct Options {
  const char* op;
  bool per_tensor, invert;
  double eps;
  bool overflow;  // found_inf: measure if asked to, apply nothing
  std::optional<at::Tensor> stats;
};

// What a segment (the whole list, or one index) comes to.
struct Verdict {
  bool applied = false;
  double coefficient = 0;
};

using Sums = std::array<double, 3>;  // d, q, |g_i|^2

Verdict judge(const Sums& s, const Options& o, int64_t row) {
  const auto [d, q, n] = s;
  Verdict v;
  v.applied = d < 0 && q > o.eps && std::isfinite(d) && std::isfinite(q) && !o.overflow;
  if (v.applied) v.coefficient = d / q;
  if (o.stats) {
    const double cosine = q == 0 || n == 0 ? 0 : d / (std::sqrt(q) * std::sqrt(n));
    float* out = o.stats->mutable_data_ptr<float>() + 4 * row;
    out[0] = static_cast<float>(d);
    out[1] = static_cast<float>(q);
    out[2] = static_cast<float>(cosine);
    out[3] = v.applied;
  }
  return v;
}

// Products of each segment, then second(tensor, begin, end, verdict) over all elements (`always`), or over those of the
// segments that are projected. A segment whose pieces all fall to one thread is finished there, while it is in cache; only
// those that threads share wait for a second parallel pass. Sums are taken piece by piece either way. The second pass walks
// forwards: backwards, to start on what is still in cache, cost 5 to 10 % (25.6M fp32, Zen 5, other work on the machine).
template <class Second>
void run(const std::vector<Pair>& pairs, const std::vector<int64_t>& numel, const Options& o, bool always, const Second& second) {
  const bool measures = o.stats || (!o.overflow && o.eps < std::numeric_limits<double>::infinity());
  const Pieces pieces(numel);
  const int64_t segments = o.per_tensor ? static_cast<int64_t>(numel.size()) : 1;
  std::vector<Sums> slots(measures ? pieces.count() : 0);
  std::vector<Verdict> verdicts(segments);
  std::vector<char> finished(segments, 0);
  const auto first = [&](int64_t s) { return o.per_tensor ? pieces.first[s] : s * pieces.count(); };
  const auto segment_of = [&](int64_t tensor) { return o.per_tensor ? tensor : 0; };

  const auto measure = [&](int64_t piece, int64_t t, int64_t begin, int64_t end) {
    const Pair& x = pairs[t];
    if (!x.b) return;
    for_dtypes(o.op, x.type, x.type, [&](auto g, auto) {
      using G = decltype(g);
      SK_PICK(dots_piece<G>)(static_cast<const G*>(x.a), static_cast<const G*>(x.b), x.mask, begin, end, o.invert, o.stats.has_value(),
                             slots[piece].data());
    });
  };
  const auto decide = [&](int64_t s) {
    if (!measures) return;
    Sums sum{};
    for (int64_t k = first(s); k < first(s + 1); ++k)
      for (int c = 0; c < 3; ++c) sum[c] += slots[k][c];
    verdicts[s] = judge(sum, o, s);
  };
  const auto change = [&](int64_t, int64_t t, int64_t begin, int64_t end) {
    const Verdict& v = verdicts[segment_of(t)];
    if (always || (v.applied && pairs[t].b)) second(t, begin, end, v);
  };

  if (measures || always) {
    pieces.shares([&](int64_t from, int64_t to) {
      int64_t s = o.per_tensor ? std::upper_bound(pieces.first.begin(), pieces.first.end(), from) - pieces.first.begin() - 1 : 0;
      for (; s < segments && first(s) < to; ++s) {
        if (measures) pieces.walk(std::max(from, first(s)), std::min(to, first(s + 1)), measure);
        if (first(s) < from || first(s + 1) > to || first(s) == first(s + 1)) continue;
        finished[s] = 1;
        decide(s);
        if (!o.overflow) pieces.walk(first(s), first(s + 1), change);
      }
    });
  }
  for (int64_t s = 0; s < segments; ++s)
    if (!finished[s]) decide(s);
  if (o.overflow) return;
  std::vector<int64_t> rest = numel;
  for (size_t t = 0; t < rest.size(); ++t) {
    const int64_t s = segment_of(static_cast<int64_t>(t));
    if (finished[s] || !(always || (verdicts[s].applied && pairs[t].b))) rest[t] = 0;
  }
  Pieces(std::move(rest)).each(change);
}

void project_conflict_cpu(at::TensorList g_i, at::TensorList g_j, std::optional<at::TensorList> masks, bool per_tensor, double eps,
                          const std::optional<at::Tensor>& stats) {
  const Options o{"project_conflict_", per_tensor, false, eps, false, stats};
  PairLists lists(o.op, g_i, g_j, masks);
  check_stats(o.op, stats, per_tensor ? static_cast<int64_t>(lists.size()) : 1, at::kCPU);
  run(lists.pairs(), lists.numel(), o, false, [&](int64_t t, int64_t begin, int64_t end, const Verdict& v) {
    const Pair& x = lists[t];
    for_dtypes(o.op, x.type, x.type, [&](auto g, auto) {
      using G = decltype(g);
      SK_PICK(subtract_piece<G>)(static_cast<G*>(const_cast<void*>(x.a)), static_cast<const G*>(x.b), x.mask, begin, end,
                                 static_cast<Arith<G>>(v.coefficient));
    });
  });
}

void project_conflict_sgd_cpu(at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList momentum_buffers, at::TensorList masks,
                              double weight_decay, double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step,
                              c10::string_view outside, bool invert, bool assume_clean, const std::optional<at::Tensor>& grad_scale,
                              const std::optional<at::Tensor>& found_inf, bool per_tensor, double eps, const std::optional<at::Tensor>& stats) {
  const Options o{"project_conflict_sgd_", per_tensor, invert, eps, overflowed(found_inf), stats};
  ProjectedSgdLists lists(o.op, params, g_i, g_j, momentum_buffers, masks, momentum, invert);
  check_stats(o.op, stats, per_tensor ? static_cast<int64_t>(lists.size()) : 1, at::kCPU);
  const bool zero_outside = outside_is_zero(o.op, outside);
  const double inverse_scale = inverse_grad_scale(grad_scale);
  run(lists.pairs(), lists.numel(), o, true, [&](int64_t t, int64_t begin, int64_t end, const Verdict& v) {
    const SgdTensor& x = lists[t];
    const void* other = lists.pairs()[t].b;
    for_dtypes(o.op, x.param_type, x.grad_type, [&](auto p, auto g) {
      using P = decltype(p);
      using G = decltype(g);
      using A = Arith<P>;
      SgdScalars<A> s(weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, zero_outside, invert);
      auto* param = static_cast<P*>(x.param);
      auto* buffer = static_cast<P*>(x.momentum);
      auto* a = static_cast<const G*>(x.grad);
      const A scale = static_cast<A>(inverse_scale);
      if (other && v.applied)
        SK_PICK(projected_sgd_piece<P, G>)(param, a, static_cast<const G*>(other), buffer, x.mask, begin, end, s, scale,
                                           static_cast<A>(v.coefficient));
      else SK_PICK(masked_sgd_piece<P, G>)(param, a, buffer, x.mask, begin, end, s, scale);
    });
  });
}

void project_conflict_sgd_tensor_lr_cpu(at::TensorList params, at::TensorList g_i, at::TensorList g_j, at::TensorList momentum_buffers,
                                        at::TensorList masks, double weight_decay, double momentum, const at::Tensor& lr, double dampening,
                                        bool nesterov, bool maximize, bool is_first_step, c10::string_view outside, bool invert, bool assume_clean,
                                        const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf, bool per_tensor,
                                        double eps, const std::optional<at::Tensor>& stats) {
  project_conflict_sgd_cpu(params, g_i, g_j, momentum_buffers, masks, weight_decay, momentum, lr.item().toDouble(), dampening, nesterov, maximize,
                           is_first_step, outside, invert, assume_clean, grad_scale, found_inf, per_tensor, eps, stats);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("project_conflict_", &project_conflict_cpu);
  m.impl("project_conflict_sgd_", &project_conflict_sgd_cpu);
  m.impl("project_conflict_sgd_.tensor_lr", &project_conflict_sgd_tensor_lr_cpu);
}

}  // namespace sparsekern
