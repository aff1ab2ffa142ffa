// What activity's kernels know about x.
#pragma once
#include <array>
#include <cstdint>

namespace sparsekern {

// Position n * length + l of feature f lies at n * image + l * step + f * feature.
struct ActivityView {
  int64_t images = 0, length = 0, features = 0;
  int64_t image = 0, step = 0, feature = 0;
};

// The window of a convolution, each with its height and width.
struct ActivityWindow {
  std::array<int64_t, 2> input, output, kernel, stride, padding, dilation;
};

}  // namespace sparsekern
