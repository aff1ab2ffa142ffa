// The sum of sixteen lanes, in a fixed tree. Included once per instruction set: no guard on purpose.
template <class A>
SK_INLINE double sum_of_lanes(Vec<A> x) {
  A lane[16];
  store(lane, x);
  for (int width = 8; width; width /= 2)
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  return lane[0];
}
