// The check of CSR patterns and its memory.
#include "cpu/csr_pattern.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <mutex>

namespace sparsekern {
namespace {

// A tensor that was found sound for some limits. The weak pointer keeps the address from being given to another tensor.
struct Seen {
  c10::weak_intrusive_ptr<c10::TensorImpl> impl;
  uint32_t version = 0;
  int64_t limit = 0, extra = 0;
};

class Memory {
 public:
  bool has(const at::Tensor& t, int64_t limit, int64_t extra) {
    if (t.is_inference()) return false;  // inference tensors have no version
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& slot : slots_)
      if (slot && slot->limit == limit && slot->extra == extra && slot->impl._unsafe_get_target() == t.unsafeGetTensorImpl() &&
          slot->version == t._version() && !slot->impl.expired())
        return true;
    return false;
  }
  void add(const at::Tensor& t, int64_t limit, int64_t extra) {
    if (t.is_inference()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    slots_[next_].emplace(Seen{c10::weak_intrusive_ptr<c10::TensorImpl>(t.getIntrusivePtr()), static_cast<uint32_t>(t._version()), limit, extra});
    next_ = (next_ + 1) % slots_.size();
  }

 private:
  std::mutex mutex_;
  std::array<std::optional<Seen>, 512> slots_;
  size_t next_ = 0;
};

Memory& memory() {
  static Memory* const instance = new Memory;  // never destroyed: tensors may outlive static storage
  return *instance;
}

constexpr int64_t kBlock = 1 << 14;

// The first position whose value is outside [0, limit), or -1. One pass without branches per block.
int64_t first_outside(const int32_t* values, int64_t count, int64_t limit) {
  const uint32_t bound = static_cast<uint32_t>(std::min<int64_t>(limit, int64_t{1} << 31));
  std::atomic<int64_t> found{count};
  at::parallel_for(0, (count + kBlock - 1) / kBlock, 16, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const int64_t begin = b * kBlock, end = std::min(begin + kBlock, count);
      uint32_t bad = 0;
      for (int64_t i = begin; i < end; ++i) bad |= static_cast<uint32_t>(values[i]) >= bound;
      if (!bad) continue;
      int64_t at = begin;
      while (static_cast<uint32_t>(values[at]) < bound) ++at;
      int64_t before = found.load();
      while (at < before && !found.compare_exchange_weak(before, at)) {
      }
      return;
    }
  });
  return found.load() == count ? -1 : found.load();
}

void check_ints(const char* op, const char* name, const at::Tensor& t, bool wide_too) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), op, ": ", name, ": expected a tensor on the CPU, got ", t.device(), "; move it with .to()");
  TORCH_CHECK_TYPE(t.scalar_type() == at::kInt || (wide_too && t.scalar_type() == at::kLong), op, ": ", name, ": expected int32",
                   wide_too ? " or int64" : "", ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 1, op, ": ", name, ": expected one dimension, got shape ", t.sizes());
}

}  // namespace

CsrPattern checked_pattern(const char* op, const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const char* crow_name,
                           const char* col_name) {
  TORCH_CHECK_VALUE(rows >= 0 && cols >= 0 && cols <= (int64_t{1} << 31), op, ": expected a shape with sides >= 0 and at most 2^31 columns, got ",
                    rows, " x ", cols);
  check_ints(op, crow_name, crow, true);
  check_ints(op, col_name, col, false);
  TORCH_CHECK_VALUE(crow.numel() == rows + 1, op, ": ", crow_name, ": expected ", rows + 1, " row pointers for ", rows, " rows, got ", crow.numel());
  CsrPattern p;
  p.rows = rows, p.cols = cols, p.nnz = col.numel();
  p.crow_keep = crow.to(at::kLong).contiguous();
  p.col_keep = col.contiguous();
  p.crow = p.crow_keep.const_data_ptr<int64_t>();
  p.col = p.col_keep.const_data_ptr<int32_t>();
  if (!memory().has(crow, rows, p.nnz)) {
    TORCH_CHECK_VALUE(p.crow[0] == 0, op, ": ", crow_name, ": expected to start at 0, got ", p.crow[0]);
    for (int64_t r = 0; r < rows; ++r)
      TORCH_CHECK_VALUE(p.crow[r] <= p.crow[r + 1], op, ": ", crow_name, ": expected row pointers that never fall, got ", p.crow[r], " then ",
                        p.crow[r + 1], " at row ", r);
    TORCH_CHECK_VALUE(p.crow[rows] == p.nnz, op, ": ", crow_name, ": expected the last row pointer to be the number of columns stored (", p.nnz,
                      "), got ", p.crow[rows]);
    memory().add(crow, rows, p.nnz);
  }
  if (!memory().has(col, cols, -1)) {
    const int64_t bad = first_outside(p.col, p.nnz, cols);
    if (bad >= 0) {
      const int64_t row = std::upper_bound(p.crow, p.crow + rows + 1, bad) - p.crow - 1;
      TORCH_CHECK_VALUE(false, op, ": ", col_name, ": expected columns in [0, ", cols, "), got ", p.col[bad], " in row ", row, ", position ", bad);
    }
    memory().add(col, cols, -1);
  }
  return p;
}

at::Tensor checked_positions(const char* op, const char* name, const at::Tensor& positions, int64_t count, int64_t limit) {
  check_ints(op, name, positions, false);
  TORCH_CHECK_VALUE(positions.numel() == count, op, ": ", name, ": expected ", count, " positions, got ", positions.numel());
  at::Tensor kept = positions.contiguous();
  if (!memory().has(positions, limit, -2)) {
    const int64_t bad = first_outside(kept.const_data_ptr<int32_t>(), count, limit);
    TORCH_CHECK_VALUE(bad < 0, op, ": ", name, ": expected positions in [0, ", limit, "), got ", kept.const_data_ptr<int32_t>()[std::max<int64_t>(bad, 0)],
                      " at ", bad);
    memory().add(positions, limit, -2);
  }
  return kept;
}

}  // namespace sparsekern
