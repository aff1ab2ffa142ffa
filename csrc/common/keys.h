// Floats as unsigned keys whose order is the order of selection: a larger key is taken first.
//   0: not eligible;  1: NaN, taken only when everything else is;  every number is above, and -0 is +0.
// Pure integer arithmetic, the same on host and device, and independent of flush-to-zero modes.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SK_HOST_DEVICE __host__ __device__
#else
#define SK_HOST_DEVICE
#endif

namespace sparsekern {

// An IEEE-like format by its bits: an unsigned integer of its width and the bits of +infinity.
template <class Bits, Bits kInfinityBits>
struct FloatFormat {
  using Key = Bits;
  static constexpr Key kInfinity = kInfinityBits;
  static constexpr int kSignShift = 8 * sizeof(Bits) - 1;
  static constexpr Key kSign = static_cast<Key>(Key(1) << kSignShift);
  static constexpr Key kMagnitude = static_cast<Key>(kSign - 1);
  static constexpr Key kQuietNaN = static_cast<Key>(kInfinity | ((kInfinity >> 1) & ~kInfinity));
};
using Float32 = FloatFormat<uint32_t, 0x7f800000u>;
using Float64 = FloatFormat<uint64_t, 0x7ff0000000000000ull>;
using BFloat16Bits = FloatFormat<uint16_t, 0x7f80>;
using Float16Bits = FloatFormat<uint16_t, 0x7c00>;

constexpr int kIneligibleKey = 0, kNaNKey = 1;

// key = base + m or base - m for the magnitude m: subtracted where `flip` says so, and for negative numbers where signs count.
template <class Format>
struct KeyOrder {
  using Key = typename Format::Key;
  Key base, use_sign, flip;  // the last two: all ones or zero

  SK_HOST_DEVICE KeyOrder(bool largest, bool use_abs)
      : base(static_cast<Key>(!use_abs  ? Format::kSign
                              : largest ? Key(2)
                                        : Key(Format::kInfinity + 2))),
        use_sign(static_cast<Key>(use_abs ? 0 : ~Key(0))),
        flip(static_cast<Key>(largest ? 0 : ~Key(0))) {}

  SK_HOST_DEVICE Key key(Key bits) const {
    const Key magnitude = bits & Format::kMagnitude;
    if (magnitude > Format::kInfinity) return kNaNKey;
    const Key negative = static_cast<Key>((bits >> Format::kSignShift) ? ~Key(0) : 0);
    const Key minus = static_cast<Key>((negative & use_sign) ^ flip);
    return static_cast<Key>(base + ((magnitude ^ minus) - minus));
  }

  // The bits of the value with this key: its magnitude where signs do not count, NaN for NaN and for "none".
  SK_HOST_DEVICE Key bits(Key key) const {
    if (key <= kNaNKey) return Format::kQuietNaN;
    const Key distance = static_cast<Key>(key - base), opposite = static_cast<Key>(base - key);
    if (!use_sign) return flip ? opposite : distance;
    if (distance == 0) return 0;
    const bool below = (distance & Format::kSign) != 0;
    return static_cast<Key>((below ? opposite : distance) | (below != (flip != 0) ? Format::kSign : Key(0)));
  }
};

}  // namespace sparsekern
