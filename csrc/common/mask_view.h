// A mask as kernels see it.
#pragma once
#include <cstdint>

namespace sparsekern {

// none: dense; bools: one byte per element; bits: one bit per element in 32-bit words.
enum class MaskKind : int8_t { none = 0, bools = 1, bits = 2 };

struct MaskView {
  MaskKind kind = MaskKind::none;
  const void* data = nullptr;
};

inline int64_t packed_words(int64_t numel) { return (numel + 31) / 32; }

}  // namespace sparsekern
