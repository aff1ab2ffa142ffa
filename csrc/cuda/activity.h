// What activity asks of the GPU: a launcher over raw pointers, free of torch, and its plan.
#pragma once
#include "cuda/launch.h"

namespace sparsekern::cuda {

// x as images of height x width places with `features` numbers each, by its strides in elements. Position b is output
// (b / (out_h * out_w), b / out_w % out_h, b % out_w). Without a window taps and out_h are 1, and output w is place w.
struct ActivityArgs {
  const void* x;
  const int64_t* seed;  // one number on the device; null: absolute values
  int64_t offset, positions;
  int64_t image, row, step, feature;
  bool window;
  int features, taps, kernel_w;
  int out_h, out_w, height, width;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// How the positions are cut. All of it follows from sizes and strides, so sums do not depend on the device.
struct ActivityPlan {
  bool rows;   // features lie side by side: a thread has some of them; else a warp has one
  int across;  // rows: threads side by side along the features
  int chunk;   // positions of a partial sum
  int64_t chunks, tiles;
};

ActivityPlan plan_activity(const ActivityArgs& args, DType type);
size_t activity_workspace_bytes(const ActivityArgs& args, DType type);

// out[f * taps + tap]; positions and features > 0. Returns a cudaError_t.
int launch_activity(const ActivityArgs& args, DType type, float* out, void* workspace, cudaStream_t stream);

}  // namespace sparsekern::cuda
