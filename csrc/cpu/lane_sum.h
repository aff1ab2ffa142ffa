// The sum of sixteen lanes, in a fixed tree. Included once per instruction set: no guard on purpose.
typedef float Quad __attribute__((vector_size(16)));

template <class A>
SK_INLINE double sum_of_lanes(Vec<A> x) {
  alignas(64) A lane[16];
  store(lane, x);
  if constexpr (std::is_same_v<A, float>) {  // by hand: rows of a few vectors would wait for a scalar loop
    Quad quad[4];
    std::memcpy(quad, lane, 64);
    const Quad four = (quad[0] + quad[2]) + (quad[1] + quad[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
  } else {
    for (int width = 8; width; width /= 2)
      for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
    return lane[0];
  }
}
