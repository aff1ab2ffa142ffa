// Cuts one block of scratch memory in arrays. With a null base it only counts, so the same lines size a workspace and cut it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sparsekern::cuda {

class Workspace {
 public:
  explicit Workspace(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* const here = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return here;
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kAlignment = 256;  // what the allocator gives, too
  char* base_;
  size_t bytes_ = 0;
};

}  // namespace sparsekern::cuda
