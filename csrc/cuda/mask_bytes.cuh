// Mask bits as bools.
#pragma once
#include "simt/simt.h"

namespace sparsekern::cuda {

// Four bits as four bytes of 0 or 1: copies of them at distances of 7 put bit k at bit 8 k.
__device__ __forceinline__ unsigned bits_to_bytes(unsigned four) { return four * 0x00204081u & 0x01010101u; }

}  // namespace sparsekern::cuda
