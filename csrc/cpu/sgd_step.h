// One SGD step on 16 lanes: shared by the masked, the packed and the projected update, so that they agree bit for bit.
// Included per instruction set, after simd_common.h.
template <class A>
struct SgdLanes {
  Vec<A> param, momentum;
};

// torch.optim.SGD: sign, coupled decay, momentum (a first step copies the gradient), dampening, nesterov.
template <class A>
SK_INLINE SgdLanes<A> sgd_step(Vec<A> param, Vec<A> grad, Vec<A> buffer, const SgdScalars<A>& s, bool has_momentum) {
  if (s.maximize) grad = splat(A(0)) - grad;
  if (s.weight_decay != 0) grad = grad + param * splat(s.weight_decay);
  if (has_momentum) {
    buffer = s.is_first_step ? grad : buffer * splat(s.momentum) + grad * splat(s.one_minus_dampening);
    grad = s.nesterov ? grad + buffer * splat(s.momentum) : buffer;
  }
  return {param - grad * splat(s.lr), buffer};
}

// Writes x where the mask is on; elsewhere the old bits stay, or +0 is written. Half precision is selected as stored: widening and
// rounding would quiet a signalling NaN, and hidden bits are promised to stay.
template <class T>
SK_INLINE void store_inside(T* at, Vec<Arith<T>> x, Vec<Arith<T>> old, Mask16 inside, bool zero_outside, int count) {
  if constexpr (sizeof(T) == 2) {
    uint16_t fresh[16];
    store(reinterpret_cast<T*>(fresh), x);
    auto* bits = reinterpret_cast<uint16_t*>(at);
    for (int k = 0; k < count; ++k) bits[k] = (inside >> k) & 1 ? fresh[k] : zero_outside ? uint16_t(0) : bits[k];
  } else {
    store_some(at, select(inside, x, zero_outside ? splat(Arith<T>(0)) : old), count);
  }
}

// The update of up to 16 elements: inside the mask the step, outside the old bits or +0.
template <class P>
SK_INLINE void sgd_lanes(P* param, Vec<Arith<P>> grad, P* buffer, Mask16 inside, bool dense, int count, const SgdScalars<Arith<P>>& s) {
  using A = Arith<P>;
  const Vec<A> p = load_some(param, count), v = buffer ? load_some(buffer, count) : splat(A(0));
  const SgdLanes<A> next = sgd_step<A>(p, grad, v, s, buffer != nullptr);
  if (dense) {
    store_some(param, next.param, count);
    if (buffer) store_some(buffer, next.momentum, count);
  } else {
    store_inside(param, next.param, p, inside, s.zero_outside, count);
    if (buffer) store_inside(buffer, next.momentum, v, inside, s.zero_outside, count);
  }
}
