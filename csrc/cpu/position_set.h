// Positions of a matrix as a sorted set without those that a pattern holds.
#pragma once
#include <cstdint>

#include "cpu/csr_pattern.h"

namespace sparsekern {

// Of `count` pairs in rows, cols the distinct ones that are not in the pattern, sorted, to the front of the same arrays; the
// rest becomes -1. Pairs with a negative entry are left out; one outside the matrix is a ValueError. Returns how many there are.
int64_t keep_new_positions(const char* op, int32_t* rows, int32_t* cols, int64_t count, const CsrPattern& pattern);

}  // namespace sparsekern
