// Philox against the vectors of its authors; then the words of any seed and number, for the comparison with Python's.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/philox.h"

using namespace sparsekern;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

void known(Words4 counter, uint32_t key0, uint32_t key1, Words4 want, const char* what) {
  const Words4 got = philox(counter, key0, key1);
  require(std::memcmp(&got, &want, sizeof(got)) == 0, what);
}

// floor(x * y / 2^64) by the columns of the multiplication.
uint64_t slow_high(uint64_t x, uint64_t y) {
  uint64_t low = 0, high = 0;
  for (int bit = 0; bit < 64; ++bit)
    if (y >> bit & 1) {
      const uint64_t before = low;
      low += x << bit;
      high += (low < before) + (bit ? x >> (64 - bit) : 0);
    }
  return high;
}

}  // namespace

// With arguments `seed number...`: per number the words of a sample and of a block of signs, and the two uniforms.
int main(int argc, char** argv) {
  known({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}, "zeros");
  known({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}, "ones");
  known({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0, {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}, "pi");
  for (uint64_t i = 0; i < 200; ++i) {
    const Uniforms u = sample_uniforms(7, i);
    require(multiply_high(u.row, u.col) == slow_high(u.row, u.col), "the high half of a product");
  }
  require(multiply_high(~0ull, ~0ull) == ~0ull - 1 && multiply_high(~0ull, 1) == 0, "the largest product");
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  for (int i = 2; i < argc; ++i) {
    const uint64_t number = std::strtoull(argv[i], nullptr, 10);
    const Words4 sample = random_words(seed, number, Purpose::samples), sign = sign_words(seed, number);
    const Uniforms u = sample_uniforms(seed, number);
    require(u.row == (sample.v[0] | static_cast<uint64_t>(sample.v[1]) << 32) && u.col == (sample.v[2] | static_cast<uint64_t>(sample.v[3]) << 32),
            "the words of a sample");
    for (uint32_t word : sample.v) std::printf("%u ", word);
    for (uint32_t word : sign.v) std::printf("%u ", word);
  }
  std::printf("ok\n");
}
