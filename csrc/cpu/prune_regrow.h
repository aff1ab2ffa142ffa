// new = kept | grown;  value = 0 where the mask flips and the caller wants it;  momentum = 0 at every flip.
// Words of 32 elements, pieces of 32K over the threads.
// Bytes per element: the old mask read and two bits; weights, momentum and mask bytes only where something flips.
inline Flips prune_regrow_piece(MaskOut mask, const uint32_t* kept, const uint32_t* grown, ZeroedRow weight, ZeroedRow momentum, int64_t begin,
                                int64_t end) {
  Flips flips;
  const int kind = static_cast<int>(mask.kind);
  for (int64_t i = begin; i < end; i += 32) {
    const int count = static_cast<int>(std::min<int64_t>(32, end - i));
    uint32_t before = mask_at(kind, mask.data, i, std::min(count, 16), false);
    if (count > 16) before |= static_cast<uint32_t>(mask_at(kind, mask.data, i + 16, count - 16, false)) << 16;
    const uint32_t after = kept[i >> 5] | grown[i >> 5], dropped = before & ~after, added = after & ~before;
    if ((dropped | added) == 0) continue;
    flips.dropped += __builtin_popcount(dropped);
    flips.grown += __builtin_popcount(added);
    if (mask.kind == MaskKind::bits) static_cast<uint32_t*>(mask.data)[i >> 5] = after;
    for (uint32_t left = dropped | added; left; left &= left - 1) {
      const int bit = __builtin_ctz(left);
      const bool on = (after >> bit) & 1;
      if (mask.kind == MaskKind::bools) static_cast<uint8_t*>(mask.data)[i + bit] = on;
      weight.clear(i + bit, on);
      momentum.clear(i + bit, on);
    }
  }
  return flips;
}
