// v = mu v + (1 - damp)(g + wd p);  p -= lr (v or g + mu v), inside the mask; outside nothing changes, or p = v = +0.
// Sixteen elements at a time, pieces of 32K elements over the threads.
// Bytes per element: p, g, v read, p, v written, mask: 20 + 1 (bool) or 20 + 1/8 (bits) in fp32; bandwidth-bound.
// Cache lines without an active weight are not skipped: the branch costs more than the line on a CPU.
#include "cpu/sgd_step.h"

template <int kind, class P, class G>
SK_INLINE void masked_sgd_loop(P* param, const G* grad, P* buffer, const void* mask, int64_t begin, int64_t end, SgdScalars<Arith<P>> s,
                               Arith<P> inverse_scale) {
  const bool dense = kind == 0 && !s.invert;
  const auto scale = splat(inverse_scale);
  int64_t i = begin;
  for (; i + 16 <= end; i += 16)
    sgd_lanes(param + i, load(grad + i) * scale, buffer ? buffer + i : nullptr, mask_at(kind, mask, i, 16, s.invert), dense, 16, s);
  if (i < end) {
    const int count = static_cast<int>(end - i);
    sgd_lanes(param + i, load_some(grad + i, count) * scale, buffer ? buffer + i : nullptr, mask_at(kind, mask, i, count, s.invert), dense, count, s);
  }
}

template <class P, class G>
void masked_sgd_piece(P* param, const G* grad, P* buffer, MaskView mask, int64_t begin, int64_t end, SgdScalars<Arith<P>> s, Arith<P> inverse_scale) {
  // One loop per kind of mask: inside it the kind is a constant.
  if (mask.kind == MaskKind::bools) masked_sgd_loop<1>(param, grad, buffer, mask.data, begin, end, s, inverse_scale);
  else if (mask.kind == MaskKind::bits) masked_sgd_loop<2>(param, grad, buffer, mask.data, begin, end, s, inverse_scale);
  else masked_sgd_loop<0>(param, grad, buffer, mask.data, begin, end, s, inverse_scale);
}

// Whether every index lies in [0, limit): a stale index must raise, not read foreign memory. 4 of the 24 bytes of an update.
template <class I>
bool indices_inside(const I* index, int64_t begin, int64_t end, int64_t limit) {
  using U = std::make_unsigned_t<I>;
  const U bound = static_cast<U>(limit);
  U outside[16] = {};
  int64_t i = begin;
  for (; i + 16 <= end; i += 16)
    for (int k = 0; k < 16; ++k) outside[k] |= static_cast<U>(index[i + k]) >= bound;
  for (; i < end; ++i) outside[0] |= static_cast<U>(index[i]) >= bound;
  U any = 0;
  for (int k = 0; k < 16; ++k) any |= outside[k];
  return any == 0;
}

// Only nonzeros are stored; `index` says where in a dense gradient each one's gradient lies, null: it is packed too.
// Gathering fills a block of 16, so that the arithmetic stays vector code; lines are asked for well ahead, since at 90 % and
// more the hardware does not see the stream.
template <class I, class P, class G>
void packed_sgd_piece(P* value, const G* grad, P* buffer, const I* index, int64_t begin, int64_t end, SgdScalars<Arith<P>> s,
                      Arith<P> inverse_scale) {
  constexpr int64_t kAhead = 64;  // nonzeros
  const auto scale = splat(inverse_scale);
  for (int64_t i = begin; i < end; i += 16) {
    const int count = static_cast<int>(std::min<int64_t>(16, end - i));
    G gathered[16] = {};
    const G* g = grad + i;
    if (index) {
      if (i + kAhead + 16 <= end)
        for (int k = 0; k < 16; ++k) __builtin_prefetch(grad + index[i + kAhead + k]);
      for (int k = 0; k < count; ++k) gathered[k] = grad[index[i + k]];
      g = gathered;
    }
    sgd_lanes(value + i, load_some(g, index ? 16 : count) * scale, buffer ? buffer + i : nullptr, Mask16(0), true, count, s);
  }
}
