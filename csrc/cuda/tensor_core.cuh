// Products of 16-bit matrices on the tensor cores, a warp at a time (sm_80 and later), with sums in fp32. The host twins add in the order of k.
// Of a 16 x 16 A, lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1} and the same + 8; of a 16 x 8 B rows 2 (l % 4) + {0, 1} and the
// same + 8 of column l / 4; of the 16 x 8 sums rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1}.
#pragma once
#include "cuda/collective.cuh"
#include "cuda/vector_io.cuh"

namespace sparsekern::cuda {

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8, 16 bytes of shared memory, aligned. With
// `transposed` every matrix arrives as its transpose.
template <bool transposed>
__device__ __forceinline__ void load_matrices(const void* row, unsigned (&to)[4]) {
#ifdef __CUDACC__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#else
  const int lane = lane_id();
  simt::exchange(kAllLanes, row, "load_matrices", [&](const void* const* rows, unsigned) {
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half) {
        const int across = 2 * (lane % 4) + half, down = lane / 4;
        const auto* from = static_cast<const uint16_t*>(rows[8 * i + (transposed ? across : down)]);
        reinterpret_cast<uint16_t*>(&to[i])[half] = from[transposed ? down : across];
      }
    return 0;
  });
#endif
}

// sum += A B.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned* b) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  struct Parts {
    const unsigned *a, *b;
  };
  const int lane = lane_id();
  const auto number = [](const unsigned* words, int word, int half) { return to_float(reinterpret_cast<const T*>(&words[word])[half]); };
  float result[4];
  simt::exchange(kAllLanes, Parts{a, b}, "multiply_add", [&](const Parts* parts, unsigned) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, low = i / 2, column = 2 * (lane % 4) + i % 2;
      float total = sum[i];
      for (int k = 0; k < 16; ++k)
        total =
            __fmaf_rn(number(parts[4 * row + k % 8 / 2].a, 2 * (k / 8) + low, k % 2), number(parts[4 * column + k % 8 / 2].b, k / 8, k % 2), total);
      result[i] = total;
    }
    return 0;
  });
  // Nobody changes what it lent before all have read it.
  __syncwarp();
  for (int i = 0; i < 4; ++i) sum[i] = result[i];
#endif
}

}  // namespace sparsekern::cuda
