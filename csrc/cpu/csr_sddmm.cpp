// Checks, panels, shares and registration of the sampled products; the kernel is in csr_sddmm.h, the gradients in Python.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "common/sddmm_checks.h"
#include "cpu/csr_faults.h"
#include "cpu/csr_sddmm_sweep.h"
#include "cpu/csr_spmm_op.h"

#define SK_KERNEL_FILE "cpu/csr_sddmm.h"
#include "cpu/for_each_isa.h"

namespace sparsekern {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 19;    // of b, to stay in a second-level cache of 1 MB
constexpr int64_t kVisit = 8;                        // nonzeros of a row that a block should hold at least
constexpr int64_t kPackedBytes = int64_t{64} << 20;  // of panels at a time
constexpr int64_t kPackedRows = 256;                 // packed by one thread in one go
constexpr int64_t kLong = int64_t{1} << 20;          // dots longer than this are sums of fp32 partials
constexpr int64_t kPartial = 4096;                   // of at most this many elements, added up in fp64

// A dense operand, and where the sweep finds its panels: in the matrix itself, or packed.
template <class T>
struct Operand {
  using P = PanelOf<T>;
  Dense<const T> matrix;
  bool in_place = false;
  at::Tensor packed = {};
  int64_t room = 0;  // elements of P per packed panel

  // Rows of the matrix serve as they are where they need no other type and no zeros behind them.
  static bool can_serve(const Dense<const T>& m, const std::vector<SddmmPanel>& panels) {
    return std::is_same_v<T, P> && m.col == 1 && panels.back().begin + 16 * panels.back().vectors == m.width;
  }
  void make_room(int64_t panels) {
    if (in_place) return;
    room = matrix.height * panel_row<P>(kMostVectors<P>);
    packed = at::empty({panels * room * static_cast<int64_t>(sizeof(P))}, at::kByte);
  }
  P* packed_panel(int64_t slot) const { return static_cast<P*>(packed.mutable_data_ptr()) + slot * room; }
  const P* panel(int64_t slot, const SddmmPanel& which) const {
    if constexpr (std::is_same_v<T, P>) {
      if (in_place) return matrix.data + which.begin;
    }
    return packed_panel(slot);
  }
  int64_t row(const SddmmPanel& which) const { return in_place ? matrix.row : panel_row<P>(which.vectors); }
  int64_t chunks() const { return in_place ? 0 : (matrix.height + kPackedRows - 1) / kPackedRows; }
  void pack(int64_t slot, const SddmmPanel& which, int64_t chunk) const {
    SK_PICK(sddmm_pack<T>)
    (matrix, which, packed_panel(slot), chunk * kPackedRows, std::min((chunk + 1) * kPackedRows, matrix.height));
  }
};

// Rows [bounds[t], bounds[t + 1]) for thread t: about as many nonzeros for each.
std::vector<int64_t> equal_shares(const CsrPattern& w, int64_t threads) {
  std::vector<int64_t> bounds(threads + 1, 0);
  for (int64_t t = 1; t < threads; ++t)
    bounds[t] = std::max(bounds[t - 1], static_cast<int64_t>(std::lower_bound(w.crow, w.crow + w.rows, w.nnz * t / threads) - w.crow));
  bounds[threads] = w.rows;
  return bounds;
}

template <class T>
void sampled_product(const CsrPattern& w, const at::Tensor& a_tensor, const at::Tensor& b_tensor, T* out) {
  using P = PanelOf<T>;
  using A = Arith<T>;
  const int64_t length = a_tensor.size(1);
  if (w.nnz == 0) return;
  if (length == 0) {
    std::fill_n(out, w.nnz, T(0));
    return;
  }
  const std::vector<SddmmPanel> panels = sddmm_panels(length, kLeastVectors<P>, kMostVectors<P>);
  const int64_t count = panels.size();
  Operand<T> a{dense_view<const T>(a_tensor)}, b{dense_view<const T>(b_tensor)};
  a.in_place = Operand<T>::can_serve(a.matrix, panels);
  // Packing b costs about as much as four dots per column; without it, parts of longer rows lie in few sets of a cache.
  b.in_place = Operand<T>::can_serve(b.matrix, panels) && (count == 1 || w.nnz < 4 * w.cols);
  const int64_t bytes = (a.in_place ? 0 : w.rows) + (b.in_place ? 0 : w.cols);  // times the longest panel row: those of one panel
  const int64_t fit = kPackedBytes / std::max<int64_t>(1, bytes * panel_row<P>(kMostVectors<P>) * static_cast<int64_t>(sizeof(P)));
  const int64_t group = std::clamp<int64_t>(fit, 1, std::min<int64_t>(count, kPartial / (16 * kMostVectors<P>)));
  a.make_room(group);
  b.make_room(group);

  const bool in_parts = length > kLong && std::is_same_v<A, float>;
  at::Tensor sums_keep, totals_keep;
  A* sums = nullptr;
  double* totals = nullptr;
  if constexpr (std::is_same_v<T, A>) sums = out;
  else {
    sums_keep = at::empty({w.nnz}, at::kFloat);
    sums = static_cast<A*>(sums_keep.mutable_data_ptr());
  }
  if (in_parts) {
    totals_keep = at::empty({w.nnz}, at::kDouble).zero_();
    totals = totals_keep.mutable_data_ptr<double>();
  }
  const int64_t threads = threads_for(w.nnz * length);
  const std::vector<int64_t> bounds = equal_shares(w, threads);
  std::vector<int64_t> next(w.rows);
  for (int64_t from = 0; from < count; from += group) {
    const int64_t here = std::min(group, count - from), chunks = a.chunks() + b.chunks();
    at::parallel_for(0, here * chunks, threads == 1 ? here * chunks + 1 : 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t slot = i / chunks, chunk = i % chunks;
        if (chunk < a.chunks()) a.pack(slot, panels[from + slot], chunk);
        else b.pack(slot, panels[from + slot], chunk - a.chunks());
      }
    });
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const int64_t top = bounds[begin], bottom = bounds[end], first = w.crow[top], last = w.crow[bottom];
      for (int64_t slot = 0; slot < here; ++slot) {
        const SddmmPanel& panel = panels[from + slot];
        const int64_t in_cache = kBlockBytes / (panel_row<P>(panel.vectors) * static_cast<int64_t>(sizeof(P)));
        const int64_t block = std::max(in_cache, w.rows * w.cols / w.nnz * kVisit);
        const bool starts = slot == 0 && (from == 0 || in_parts);
        const SddmmSweep<P> sweep{w.crow,       w.col, w.cols,      block, a.panel(slot, panel), b.panel(slot, panel), a.row(panel),
                                  b.row(panel), sums,  next.data(), starts};
        SK_PICK(sddmm_sweep<P>)(sweep, panel.vectors, top, bottom);
      }
      if (in_parts)
        for (int64_t i = first; i < last; ++i) totals[i] += sums[i];
      if (from + group < count) return;
      if (in_parts) SK_PICK(sddmm_round<T, double>)(totals, out, first, last);
      else if (!std::is_same_v<T, A>) SK_PICK(sddmm_round<T, A>)(sums, out, first, last);
    });
  }
}

void dots(const CsrPattern& w, const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  const at::Tensor left = with_unit_stride(a), right = with_unit_stride(b);
  for_float("", "a", a.scalar_type(), [&](auto type) { sampled_product(w, left, right, static_cast<decltype(type)*>(out.mutable_data_ptr())); });
}

at::Tensor csr_sddmm_cpu(const at::Tensor& crow, const at::Tensor& col, const at::Tensor& a, const at::Tensor& b, c10::string_view algo) {
  constexpr const char* kOp = "csr_sddmm";
  check_sddmm_operands(kOp, a, b);
  TORCH_CHECK_VALUE(algo == "auto", kOp, ": algo: expected 'auto', got '", algo, "'");
  const CsrPattern w = checked_pattern(kOp, crow, col, a.size(0), b.size(0));
  at::Tensor out = at::empty({w.nnz}, a.options());
  dots(w, a, b, out);
  return out;
}

// The places of `name` as a pointer to `count` numbers inside [0, limit); what stands behind them is not looked at.
const int32_t* checked_places(const char* name, const at::Tensor& places, int64_t samples, int64_t count, int64_t limit, at::Tensor& keep) {
  check_places("coo_sddmm", name, places, samples);
  keep = places.contiguous();
  const int32_t* at = keep.const_data_ptr<int32_t>();
  const int64_t bad = first_outside(at, 0, count, limit);
  TORCH_CHECK_VALUE(bad == count, "coo_sddmm: ", name, ": expected ", name, " in [0, ", limit, "), got ", at[bad], " at ", bad);
  return at;
}

int64_t checked_count(const at::Tensor& count, int64_t samples) {
  check_count("coo_sddmm", count);
  const int64_t valid = count.item().toLong();
  TORCH_CHECK_VALUE(valid >= 0 && valid <= samples, "coo_sddmm: count: expected 0 to ", samples, ", got ", valid);
  return valid;
}

at::Tensor coo_sddmm_cpu(const at::Tensor& rows, const at::Tensor& cols, const at::Tensor& count, const at::Tensor& a, const at::Tensor& b) {
  constexpr const char* kOp = "coo_sddmm";
  check_sddmm_operands(kOp, a, b);
  CsrPattern w;
  w.rows = a.size(0), w.cols = b.size(0), w.nnz = checked_count(count, rows.numel());
  const int32_t* row = checked_places("rows", rows, rows.numel(), w.nnz, w.rows, w.crow_keep);
  w.col = checked_places("cols", cols, rows.numel(), w.nnz, w.cols, w.col_keep);
  std::vector<int64_t> crow(w.rows + 1, 0);
  for (int64_t i = 0; i < w.nnz; ++i) ++crow[row[i] + 1];
  std::partial_sum(crow.begin(), crow.end(), crow.begin());
  w.crow = crow.data();
  at::Tensor out = at::empty({rows.numel()}, a.options());
  out.narrow(0, w.nnz, rows.numel() - w.nnz).zero_();
  if (std::is_sorted(row, row + w.nnz)) {
    dots(w, a, b, out);
    return out;
  }
  // Sorted by row first; `from` leads back.
  std::vector<int32_t> col(w.nnz);
  const at::Tensor from = at::empty({w.nnz}, at::kLong);
  std::vector<int64_t> next(crow.begin(), crow.end() - 1);
  for (int64_t i = 0; i < w.nnz; ++i) {
    const int64_t place = next[row[i]]++;
    col[place] = w.col[i];
    from.mutable_data_ptr<int64_t>()[place] = i;
  }
  w.col = col.data();
  const at::Tensor sorted = at::empty({w.nnz}, a.options());
  dots(w, a, b, sorted);
  return out.index_copy_(0, from, sorted);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_sddmm", &csr_sddmm_cpu);
  m.impl("coo_sddmm", &coo_sddmm_cpu);
}

}  // namespace sparsekern
