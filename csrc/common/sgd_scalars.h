// The scalars of a masked SGD step, converted once on the host to the type that arithmetic is done in.
#pragma once

namespace sparsekern {

template <class A>
struct SgdScalars {
  A weight_decay, momentum, lr, one_minus_dampening;
  bool nesterov, maximize, is_first_step;
  bool zero_outside;  // outside="zero": param and momentum become +0 where the mask is off
  bool invert;        // the mask's complement is what is trained

  SgdScalars() = default;
  SgdScalars(double weight_decay, double momentum, double lr, double dampening, bool nesterov, bool maximize, bool is_first_step, bool zero_outside,
             bool invert)
      : weight_decay(static_cast<A>(weight_decay)),
        momentum(static_cast<A>(momentum)),
        lr(static_cast<A>(lr)),
        one_minus_dampening(static_cast<A>(1 - dampening)),
        nesterov(nesterov),
        maximize(maximize),
        is_first_step(is_first_step),
        zero_outside(zero_outside),
        invert(invert) {}
};

}  // namespace sparsekern
