// Philox 4x32-10: four random words for a counter of four words under a key of two. The same on host and device, and the
// same as sparsekern/ops/_philox.py, which says which words of which counter are used for what.
// Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
#pragma once
#include <cstdint>

#ifndef SK_HOST_DEVICE
#if defined(__CUDACC__)
#define SK_HOST_DEVICE __host__ __device__
#else
#define SK_HOST_DEVICE
#endif
#endif

namespace sparsekern {

struct Words4 {
  uint32_t v[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

SK_HOST_DEVICE inline Words4 philox(Words4 c, uint32_t key0, uint32_t key1) {
  for (int turn = 0; turn < kPhiloxRounds; ++turn) {
    const uint64_t p = static_cast<uint64_t>(kPhiloxMultiplier0) * c.v[0], q = static_cast<uint64_t>(kPhiloxMultiplier1) * c.v[2];
    c = {{static_cast<uint32_t>(q >> 32) ^ c.v[1] ^ key0, static_cast<uint32_t>(q), static_cast<uint32_t>(p >> 32) ^ c.v[3] ^ key1,
          static_cast<uint32_t>(p)}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return c;
}

// What a number is for: the last word of its counter.
enum class Purpose : uint32_t { samples = 0, signs = 1 };

SK_HOST_DEVICE inline Words4 random_words(uint64_t seed, uint64_t number, Purpose purpose) {
  return philox({{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), 0, static_cast<uint32_t>(purpose)}},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Sample i draws its row from the first of these and its column from the second.
struct Uniforms {
  uint64_t row, col;
};
SK_HOST_DEVICE inline Uniforms sample_uniforms(uint64_t seed, uint64_t i) {
  const Words4 w = random_words(seed, i, Purpose::samples);
  return {w.v[0] | static_cast<uint64_t>(w.v[1]) << 32, w.v[2] | static_cast<uint64_t>(w.v[3]) << 32};
}

// The sign bits of the 128 numbers of block `number >> 7`: bit i & 31 of word (i >> 5) & 3; a set bit is -1.
SK_HOST_DEVICE inline Words4 sign_words(uint64_t seed, uint64_t block) { return random_words(seed, block, Purpose::signs); }

// floor(x * y / 2^64)
SK_HOST_DEVICE inline uint64_t multiply_high(uint64_t x, uint64_t y) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(x, y);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(x) * y >> 64);
#endif
}

}  // namespace sparsekern
