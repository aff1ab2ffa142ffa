// Population counts of one or two masks.
#pragma once
#include <cstdint>

namespace sparsekern {

struct MaskCounts {
  int64_t a = 0, b = 0, both = 0;
};

}  // namespace sparsekern
