// Whether torch's fp32 matrix products may use TF32.
#pragma once
#include <ATen/Context.h>

namespace sparsekern::cuda {

inline bool tf32_allowed() {
  try {
    return at::globalContext().allowTF32CuBLAS();
  } catch (const c10::Error&) {  // set by the old interface and by the new one, to different things
    return true;
  }
}

}  // namespace sparsekern::cuda
