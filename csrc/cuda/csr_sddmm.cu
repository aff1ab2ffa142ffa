// Launchers of csr_sddmm and coo_sddmm; the kernels are in csr_sddmm.cuh.
#include "cuda/csr_sddmm.cuh"

namespace sparsekern::cuda {
namespace {

int64_t up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// How a gather is cut, and what lies where in its workspace.
struct GatherPlan {
  int64_t slab, passes;
  bool stage_a, stage_b, compensated;
  size_t a = 0, b = 0, sums = 0, low = 0, bytes = 0;  // offsets

  explicit GatherPlan(const SddmmCall& c)
      : slab(sddmm_slab(c.places.rows, c.places.cols, c.n, bytes_of(c.type))),
        passes((c.n + slab - 1) / slab),
        stage_a(sddmm_stages(c.type, c.a, c.n)),
        stage_b(sddmm_stages(c.type, c.b, c.n)),
        compensated(c.n > kSddmmLong) {
    const auto room = [&](size_t& at, bool wanted, int64_t size) {
      at = bytes;
      if (wanted) bytes += static_cast<size_t>(up(size, 256));
    };
    const int64_t sum = c.type == SddmmType::f64 ? 8 : 4;
    room(a, stage_a, c.places.rows * slab * bytes_of(c.type));
    room(b, stage_b, c.places.cols * slab * bytes_of(c.type));
    room(sums, passes > 1, c.places.entries * sum);
    room(low, passes > 1 && compensated, c.places.entries * sum);
  }
};

SddmmStageSide stage_side(const SddmmOperand& x, int64_t height, int64_t begin, int64_t slab, int64_t size, void* to, bool wanted) {
  const int64_t offset = (x.by_columns ? begin * x.stride : begin) * size, pitch = slab * size / (size == 8 ? 8 : 4);
  const int across = static_cast<int>((pitch + 31) / 32);
  return {static_cast<const char*>(x.data) + offset,
          height,
          x.stride,
          x.by_columns,
          to,
          pitch,
          across,
          wanted ? static_cast<int>((height + 31) / 32) * across : 0};
}

template <class T>
int launch_typed(const SddmmCall& c, char* workspace, cudaStream_t stream) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  const GatherPlan plan(c);
  const int64_t size = sizeof(T), blocks = (c.places.entries + kThreads - 1) / kThreads;
  SddmmGatherArgs args = {};
  args.places = c.places;
  args.a_pitch = (plan.stage_a ? plan.slab : c.a.stride) * size;
  args.b_pitch = (plan.stage_b ? plan.slab : c.b.stride) * size;
  args.out = c.out;
  args.out_type = c.out_type;
  args.sums = workspace + plan.sums;
  args.low = plan.passes > 1 && plan.compensated ? workspace + plan.low : nullptr;
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    const int64_t begin = pass * plan.slab, n = c.n - begin < plan.slab ? c.n - begin : plan.slab;
    if (plan.stage_a || plan.stage_b) {
      const SddmmStageArgs stage = {stage_side(c.a, c.places.rows, begin, plan.slab, size, workspace + plan.a, plan.stage_a),
                                    stage_side(c.b, c.places.cols, begin, plan.slab, size, workspace + plan.b, plan.stage_b), n};
      SK_LAUNCH(&sddmm_stage_kernel<Bits>, stage.a.tiles + stage.b.tiles, kThreads, 0, stream, stage);
    }
    args.a = plan.stage_a ? workspace + plan.a : static_cast<const char*>(c.a.data) + begin * size;
    args.b = plan.stage_b ? workspace + plan.b : static_cast<const char*>(c.b.data) + begin * size;
    args.chunks = static_cast<int>((n * size + 15) / 16);
    args.first = pass == 0;
    args.last = pass == plan.passes - 1;
    SK_LAUNCH(&sddmm_gather_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, stream, args);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

bool sddmm_stages(SddmmType type, const SddmmOperand& x, int64_t n) {
  const int64_t per_chunk = 16 / bytes_of(type);
  return x.by_columns || n % per_chunk != 0 || x.stride % per_chunk != 0 || reinterpret_cast<uintptr_t>(x.data) % 16 != 0;
}

size_t sddmm_gather_workspace_bytes(const SddmmCall& call) { return GatherPlan(call).bytes; }

int launch_sddmm_gather(const SddmmCall& call, void* workspace, const DeviceProps&, cudaStream_t stream) {
  char* at = static_cast<char*>(workspace);
  if (call.places.entries == 0) return 0;
  if (call.type == SddmmType::f32) return launch_typed<float>(call, at, stream);
  if (call.type == SddmmType::bf16) return launch_typed<__nv_bfloat16>(call, at, stream);
  if (call.type == SddmmType::f64) return launch_typed<double>(call, at, stream);
  return launch_typed<__half>(call, at, stream);
}

int launch_sddmm_sample(const SddmmPlaces& p, const float* dense, int64_t first, int64_t height, void* out, SddmmType out_type, const DeviceProps&,
                        cudaStream_t stream) {
  if (p.entries == 0 || height == 0) return 0;
  if (!p.crow) {
    SK_LAUNCH(&sddmm_sample_places_kernel, static_cast<unsigned>((p.entries + kThreads - 1) / kThreads), kThreads, 0, stream, p, dense, first, height,
              out, out_type);
  } else {
    int lanes = 32;  // about two entries of a usual row for each
    while (lanes < kThreads && lanes * 2 * p.rows < p.entries) lanes *= 2;
    const int64_t per_block = kThreads / lanes;
    SK_LAUNCH(&sddmm_sample_rows_kernel, static_cast<unsigned>((height + per_block - 1) / per_block), kThreads, 0, stream, p, dense, first, height,
              lanes, out, out_type);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace sparsekern::cuda
