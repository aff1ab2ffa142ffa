"""Channel scores on a GPU: one pass over weights and masks, beside what one writes with torch."""
import torch
from gpu_race import Case, Contender, Lab, Target, agrees, bits_of

from sparsekern.testing import resnet50_shapes

BETA = 0.7


def scores(shape: str):
    def build(lab: Lab) -> dict:
        shapes = [s for s in resnet50_shapes() if len(s) > 1] if shape == "ResNet-50" else [(2000, 1000)] * 50
        if lab.small:
            shapes = [(33, 5), (7, 3, 3, 3), (1, 1025)]
        weights = [lab.randn(*s) for s in shapes]
        a, b = ([lab.mask(*s, density=d) for s in shapes] for d in (0.1, 0.2))
        packed, elements = ([bits_of(m) for m in a], [bits_of(m) for m in b]), sum(w.numel() for w in weights)

        def composition(weights=weights):
            return [((BETA * x + (1 - BETA) * y) * w.abs()).flatten(1).sum(1) for w, x, y in zip(weights, a, b)]

        want = composition([w.double() for w in weights])

        def check(got):
            for index in {0, len(want) - 1}:
                agrees(got[index], want[index], weights[index][0].numel(), torch.float32)

        def make(one, other):
            return lambda f: {"run": lambda: f(weights, one, other, beta=BETA), "check": check}

        return (lab.ours("sparsekern bool", "channel_scores", make(a, b), hbm=6 * elements)
                | lab.ours("sparsekern bits", "channel_scores", make(*packed), hbm=4.25 * elements)
                | {"torch ((beta a + (1 - beta) b) |w|).sum": Contender(composition, check, hbm=6 * elements)})
    return build


CASES = [
    Case("channel_scores", "100M as 50 of 2000x1000", scores("100M"), needs=("channel_scores",), rank=0,
         targets=(Target("sparsekern bool", "share", 0.8), Target("sparsekern bits", "share", 0.8))),
    Case("channel_scores", "ResNet-50, 54 weight tensors", scores("ResNet-50"), needs=("channel_scores",)),
]
