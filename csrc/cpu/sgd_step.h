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

// The update of up to 16 elements: inside the mask the step, outside the old bits or +0.
template <class P>
SK_INLINE void sgd_lanes(P* param, Vec<Arith<P>> grad, P* buffer, Mask16 inside, bool dense, int count, const SgdScalars<Arith<P>>& s) {
  using A = Arith<P>;
  const Vec<A> p = load_some(param, count), v = buffer ? load_some(buffer, count) : splat(A(0));
  SgdLanes<A> next = sgd_step<A>(p, grad, v, s, buffer != nullptr);
  if (!dense) {
    next.param = select(inside, next.param, s.zero_outside ? splat(A(0)) : p);
    next.momentum = select(inside, next.momentum, s.zero_outside ? splat(A(0)) : v);
  }
  store_some(param, next.param, count);
  if (buffer) store_some(buffer, next.momentum, count);
}
