// A thread's working memory for panels: kept between calls while small, on huge pages where the system has them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparsekern {

class Scratch {
 public:
  static constexpr int64_t kPage = int64_t{1} << 21, kKept = 4 * kPage;

  // Uninitialised, aligned to a cache line; valid until this object goes or asks again, and while no other on this thread asks.
  explicit Scratch(int64_t bytes) {
    if (bytes == 0) return;
    static thread_local std::unique_ptr<void, decltype(&std::free)> kept(nullptr, &std::free);
    static thread_local int64_t kept_bytes = 0;
    if (bytes > kKept) {
      own_.reset(allocate(bytes));
      data_ = own_.get();
    } else {
      if (kept_bytes < bytes) {  // a fresh huge page can cost milliseconds, so a block is never given back between calls
        kept_bytes = 0;
        kept.reset();
        kept.reset(allocate(bytes));
        kept_bytes = (bytes + kPage - 1) / kPage * kPage;
      }
      data_ = kept.get();
    }
  }
  template <class T>
  T* at(int64_t byte) {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte);
  }

 private:
  // Random rows of a panel are read: with 4 KB pages the first-level TLB would not reach over one.
  static void* allocate(int64_t bytes) {
    const int64_t size = (bytes + kPage - 1) / kPage * kPage;
    void* block = std::aligned_alloc(kPage, size);
    if (block == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
  }
  std::unique_ptr<void, decltype(&std::free)> own_{nullptr, &std::free};
  void* data_ = nullptr;
};

}  // namespace sparsekern
