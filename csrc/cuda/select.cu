// Launch plan and launchers of the selection; the kernels are in select.cuh and select_sweep.cuh.
#include <algorithm>
#include <vector>

#include "cuda/select_sweep.cuh"

namespace sparsekern::cuda {
namespace {

constexpr int kSweeps = 6;  // one that may fail, three that count, one that lists, one that finishes
// Granules that cost a block as much as entering and leaving a segment: a guess until measured. So many stand empty between two
// segments, and whoever has small segments has fewer elements.
constexpr int kVisitCost = 4;
constexpr int kSmallChunk = 480, kLargeChunk = 4064;  // words of 8 bytes
static_assert(sizeof(SelectChunk<kLargeChunk>) + 32 <= kParameterBytes);

size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Room for the 1 to 6 % that a bracket of a sample leaves; at least 2^(index bits - 7), see kSweeps.
int64_t list_capacity(int64_t numel) { return std::min(numel, numel / 12 + 4096); }

// Host words that go to the workspace.
struct Words {
  const unsigned long long* at;
  int64_t count;
  template <class T>
  Words(const T* table, size_t count) : at(reinterpret_cast<const unsigned long long*>(table)), count(static_cast<int64_t>(count * sizeof(T) / 8)) {
    static_assert(sizeof(T) % 8 == 0 && alignof(T) == 8);
  }
};

template <int words>
int upload_chunk(const Words& a, const Words& b, int64_t from, unsigned long long* to, unsigned long long* clear, int64_t cleared,
                 const DeviceProps& props, cudaStream_t stream) {
  SelectChunk<words> chunk;
  const int64_t count = std::min<int64_t>(words, a.count + b.count - from);
  for (int64_t k = 0; k < count; ++k) chunk.word[k] = from + k < a.count ? a.at[from + k] : b.at[from + k - a.count];
  const int64_t blocks = std::min<int64_t>(std::max(count, cleared) / kThreads + 1, 4 * props.sms);
  SK_LAUNCH(select_upload_kernel<words>, static_cast<int>(blocks), kThreads, 0, stream, chunk, to + from, count, clear, cleared);
  return static_cast<int>(cudaGetLastError());
}

// Both tables, one behind the other; the first launch also clears.
int upload(const Words& a, const Words& b, unsigned char* workspace, const SelectPlan& plan, const DeviceProps& props, cudaStream_t stream) {
  auto* to = reinterpret_cast<unsigned long long*>(workspace);
  auto* clear = reinterpret_cast<unsigned long long*>(workspace + plan.cleared_at);
  const int64_t total = a.count + b.count, cleared = static_cast<int64_t>(plan.lists_at - plan.cleared_at) / 8;
  if (total <= kSmallChunk) return upload_chunk<kSmallChunk>(a, b, 0, to, clear, cleared, props, stream);
  for (int64_t at = 0; at < total; at += kLargeChunk)
    if (const int status = upload_chunk<kLargeChunk>(a, b, at, to, clear, at == 0 ? cleared : 0, props, stream)) return status;
  return 0;
}

// `count` segments, from `begin` on in the order of size classes.
int launch_short(const SelectTables& tables, int64_t begin, int64_t count, int numel, int threads, const DeviceProps& props, cudaStream_t stream) {
  if (count == 0) return 0;
  const int bytes = numel * static_cast<int>(sizeof(Rank));
  const int64_t slots = static_cast<int64_t>(props.sms) * (1024 / threads);  // what registers and shared memory let run together
  SK_LAUNCH(select_short_kernel, static_cast<int>(std::min(count, slots)), threads, bytes, stream, tables, begin, begin + count);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

SelectPlan plan_select(SelectEntry* entries, size_t entry_count, SelectSegment* segments, size_t segment_count) {
  SelectPlan plan;
  for (size_t n = 0; n < segment_count; ++n) {
    SelectSegment& s = segments[n];
    s.numel = 0;
    for (int32_t i = s.entry_begin; i < s.entry_end; ++i) s.numel += entries[i].numel;
    const bool large = s.numel > kSmallSegment;
    if (large && plan.large > 0) plan.granules += kVisitCost;
    s.first = static_cast<int32_t>(plan.granules);
    int64_t offset = 0;
    for (int32_t i = s.entry_begin; i < s.entry_end; ++i) {
      SelectEntry& e = entries[i];
      e.segment = static_cast<int32_t>(n);
      e.first = static_cast<int32_t>(plan.granules);
      e.offset = offset;
      offset += e.numel;
      if (large) plan.granules += (e.numel + kGranule - 1) / kGranule;
    }
    s.last = static_cast<int32_t>(plan.granules);
    s.state = large ? static_cast<int32_t>(plan.large) : -1;
    s.list = plan.candidates;
    s.capacity = large ? static_cast<uint32_t>(list_capacity(s.numel)) : 0;
    plan.candidates += s.capacity;
    ++(large ? plan.large : s.numel > kTinySegment ? plan.small : plan.tiny);
  }
  int32_t next = static_cast<int32_t>(plan.granules);
  for (size_t n = segment_count; n-- > 0;) {
    segments[n].next = next;
    if (segments[n].state >= 0) next = segments[n].first;
  }
  int64_t tiny = 0, small = plan.tiny, large = plan.tiny + plan.small;
  for (size_t n = 0; n < segment_count; ++n)
    segments[segments[n].state >= 0 ? large++ : segments[n].numel > kTinySegment ? small++ : tiny++].visit = static_cast<int32_t>(n);
  const auto place = [&](size_t bytes) {
    const size_t at = plan.bytes;
    plan.bytes += align(bytes);
    return at;
  };
  plan.segments_at = entry_count * sizeof(SelectEntry);
  place(plan.segments_at + segment_count * sizeof(SelectSegment));
  plan.cleared_at = place(static_cast<size_t>(plan.large) * kBins * sizeof(uint32_t));
  plan.states_at = place(static_cast<size_t>(plan.large) * sizeof(SelectState) + sizeof(uint32_t));
  plan.lists_at = place(static_cast<size_t>(plan.candidates) * sizeof(Rank));
  return plan;
}

int launch_select(const SelectEntry* entries, size_t entry_count, const SelectSegment* segments, size_t segment_count, const SelectPlan& plan,
                  void* workspace, const DeviceProps& props, cudaStream_t stream) {
  if (segment_count == 0) return 0;
  auto* bytes = static_cast<unsigned char*>(workspace);
  SelectTables t;
  t.entries = reinterpret_cast<const SelectEntry*>(bytes);
  t.segments = reinterpret_cast<const SelectSegment*>(bytes + plan.segments_at);
  t.bins = reinterpret_cast<uint32_t*>(bytes + plan.cleared_at);
  t.states = reinterpret_cast<SelectState*>(bytes + plan.states_at);
  t.lists = reinterpret_cast<Rank*>(bytes + plan.lists_at);
  t.done = reinterpret_cast<uint32_t*>(t.states + plan.large);
  t.tiny = plan.tiny;
  t.small = plan.small;
  t.large = plan.large;
  t.granules = plan.granules;
  t.entry_count = static_cast<int32_t>(entry_count);
  if (const int status = upload(Words(entries, entry_count), Words(segments, segment_count), bytes, plan, props, stream)) return status;
  if (plan.small > 0) {
    const int most = kSmallSegment * sizeof(Rank);
    if (const cudaError_t status = cudaFuncSetAttribute(select_short_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most))
      return static_cast<int>(status);
  }
  if (const int status = launch_short(t, 0, plan.tiny, kTinySegment, kTinyThreads, props, stream)) return status;
  if (const int status = launch_short(t, plan.tiny, plan.small, kSmallSegment, kSmallThreads, props, stream)) return status;
  if (plan.large == 0) return 0;
  const int64_t slots = static_cast<int64_t>(props.sms) * kSweepBlocksPerSm;
  SK_LAUNCH(select_sample_kernel, static_cast<int>(std::min(plan.large, slots)), kSampleThreads, 0, stream, t);
  if (const cudaError_t status = cudaGetLastError()) return static_cast<int>(status);
  if (const cudaError_t status = cudaFuncSetAttribute(select_sweep_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSweepShared))
    return static_cast<int>(status);
  for (int k = 0; k < kSweeps; ++k) {
    SK_LAUNCH(select_sweep_kernel, static_cast<int>(std::min(plan.granules, slots)), kSweepThreads, kSweepShared, stream, t);
    if (const cudaError_t status = cudaGetLastError()) return static_cast<int>(status);
  }
  return 0;
}

}  // namespace sparsekern::cuda
