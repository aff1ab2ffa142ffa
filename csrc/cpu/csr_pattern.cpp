// The check of CSR patterns and its memory.
#include "cpu/csr_pattern.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <mutex>
#include <optional>

#include "common/csr_edit_checks.h"
#include "cpu/csr_faults.h"

namespace sparsekern {
namespace {

// A tensor that was found sound for some limits. The weak pointers keep the addresses of tensor and storage from being given to
// others; the storage counts too, since `x.data = y` exchanges it and leaves the version as it was.
struct Seen {
  c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  const void* data;
  int64_t numel, stride;
  uint32_t version;
  int64_t limit, extra;
};

class Memory {
 public:
  bool has(const at::Tensor& t, int64_t limit, int64_t extra) {
    if (t.is_inference()) return false;  // inference tensors have no version
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t i = find(t, limit, extra);
    if (i < 0) return false;
    const Seen& seen = *slots_[i];
    return seen.storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl() && seen.data == t.const_data_ptr() && seen.numel == t.numel() &&
           seen.stride == t.stride(0) && seen.version == static_cast<uint32_t>(t._version());
  }
  void add(const at::Tensor& t, int64_t limit, int64_t extra) {
    if (t.is_inference()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t i = find(t, limit, extra);
    if (i < 0) {
      i = next_;
      next_ = (next_ + 1) % kSlots;
    }
    tensors_[i] = t.unsafeGetTensorImpl();
    slots_[i].emplace(Seen{c10::weak_intrusive_ptr<c10::TensorImpl>(t.getIntrusivePtr()), t.storage().getWeakStorageImpl(), t.const_data_ptr(),
                           t.numel(), t.stride(0), static_cast<uint32_t>(t._version()), limit, extra});
  }

 private:
  static constexpr int64_t kSlots = 512;
  int64_t find(const at::Tensor& t, int64_t limit, int64_t extra) const {
    for (int64_t i = 0; i < kSlots; ++i)
      if (tensors_[i] == t.unsafeGetTensorImpl() && slots_[i]->limit == limit && slots_[i]->extra == extra) return i;
    return -1;
  }
  std::mutex mutex_;
  std::array<const void*, kSlots> tensors_{};  // beside the slots, so that a search reads 4 KB
  std::array<std::optional<Seen>, kSlots> slots_;
  int64_t next_ = 0;
};

Memory& memory() {
  static Memory* const instance = new Memory;  // never destroyed: tensors may outlive static storage
  return *instance;
}

// The first position whose value is outside [0, limit), or -1.
int64_t first_outside_of_all(const int32_t* values, int64_t count, int64_t limit) {
  std::atomic<int64_t> found{count};
  at::parallel_for(0, count, 1 << 18, [&](int64_t begin, int64_t end) {
    const int64_t at = first_outside(values, begin, end, limit);
    int64_t before = found.load();
    while (at < end && at < before && !found.compare_exchange_weak(before, at)) {
    }
  });
  return found.load() == count ? -1 : found.load();
}

}  // namespace

CsrPattern checked_pattern(const char* op, const at::Tensor& crow, const at::Tensor& col, int64_t rows, int64_t cols, const char* crow_name,
                           const char* col_name) {
  check_pattern_shape(op, crow, col, rows, cols, at::kCPU, crow_name, col_name);
  CsrPattern p;
  p.rows = rows, p.cols = cols, p.nnz = col.numel();
  p.crow_keep = crow.to(at::kLong).contiguous();
  p.col_keep = col.contiguous();
  p.crow = p.crow_keep.const_data_ptr<int64_t>();
  p.col = p.col_keep.const_data_ptr<int32_t>();
  if (!memory().has(crow, rows, p.nnz)) {
    const CsrFinding found = pointer_fault(p.crow, crow.numel(), rows, p.nnz);
    TORCH_CHECK_VALUE(found.fault != CsrFault::pointer_start, op, ": ", crow_name, ": expected to start at 0, got ", p.crow[0]);
    TORCH_CHECK_VALUE(found.fault != CsrFault::pointer_falls, op, ": ", crow_name, ": expected row pointers that never fall, got ", p.crow[found.row],
                      " then ", p.crow[found.row + 1], " at row ", found.row);
    TORCH_CHECK_VALUE(found.fault == CsrFault::none, op, ": ", crow_name, ": expected the last row pointer to be the number of columns stored (",
                      p.nnz, "), got ", p.crow[rows]);
    memory().add(crow, rows, p.nnz);
  }
  if (!memory().has(col, cols, -1)) {
    const int64_t bad = first_outside_of_all(p.col, p.nnz, cols);
    if (bad >= 0) {
      const int64_t row = std::upper_bound(p.crow, p.crow + rows + 1, bad) - p.crow - 1;
      TORCH_CHECK_VALUE(false, op, ": ", col_name, ": expected columns in [0, ", cols, "), got ", p.col[bad], " in row ", row, ", position ", bad);
    }
    memory().add(col, cols, -1);
  }
  return p;
}

at::Tensor checked_positions(const char* op, const char* name, const at::Tensor& positions, int64_t count, int64_t limit) {
  check_index_vector(op, name, positions, false, at::kCPU);
  TORCH_CHECK_VALUE(positions.numel() == count, op, ": ", name, ": expected ", count, " positions, got ", positions.numel());
  at::Tensor kept = positions.contiguous();
  if (!memory().has(positions, limit, -2)) {
    const int64_t bad = first_outside_of_all(kept.const_data_ptr<int32_t>(), count, limit);
    TORCH_CHECK_VALUE(bad < 0, op, ": ", name, ": expected positions in [0, ", limit, "), got ",
                      kept.const_data_ptr<int32_t>()[std::max<int64_t>(bad, 0)], " at ", bad);
    memory().add(positions, limit, -2);
  }
  return kept;
}

}  // namespace sparsekern
