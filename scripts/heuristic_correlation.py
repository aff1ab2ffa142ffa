"""How well the sampling distributions of GSE follow the gradient: Pearson's correlation of |gradient| with the product of a layer's input and
output activity, over all its connections, at the events of a short CIFAR-10 run.

    python scripts/heuristic_correlation.py DATA_DIR > results/heuristic_correlation.json

The run is the dense simulation (storage="masked"), as only that has all gradients; the correlation of a uniform distribution is 0.
"""
import argparse
import json
import statistics
import tempfile

import torch

from sparsekern.sparsity import taps
from sparsekern.training import TrainConfig, train
from sparsekern.training.report import commit, uncommitted


class Watch:
    """Looks at every layer in the steps before which gradients are dense."""

    def __init__(self):
        self.taps, self.found = None, {}

    def __call__(self, run) -> None:
        gse = run.sparsifier
        if self.taps is None:
            self.taps = [taps.Tap(layer.modules, lambda module, h, delta, name=layer.name: self.look(gse, name, module, h, delta))
                         for layer in gse.layers]
        for tap in self.taps:
            tap.open = gse.collecting(run.step)

    def look(self, gse, name, module, h, delta) -> None:
        """The gradient of all connections as the hook sees it: by unfolding nothing, at every position of the weight."""
        rows, cols = module.weight.shape[0], module.weight[0].numel()
        every = torch.arange(rows * cols, dtype=torch.int32)
        gradient = taps.gradient_at(module, h, delta, every // cols, every % cols).abs()
        for distribution in ("grabo", "graest"):
            out, inside = taps.activities(module, h, delta, signed=distribution == "graest", seed=gse.steps)
            product = (out.view(len(inside), -1, 1) * inside[:, None]).abs().flatten()
            pair = torch.corrcoef(torch.stack([product.double(), gradient.double()]))[0, 1].item()
            self.found.setdefault(distribution, {}).setdefault(name, []).append(pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("--models", nargs="+", default=["mlp:1024,1024", "resnet20"])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        watch = Watch()
        with tempfile.TemporaryDirectory() as out:
            train(TrainConfig(algorithm="gse", model=model, sparsity=(options.sparsity,), data="cifar10", data_dir=options.data_dir, subset=5000,
                              epochs=2, eval_every=2, batch_size=options.batch, lr=0.05, out=out, progress="none", device="cpu",
                              options={"storage": "masked", "delta_t": 8, "end": 10**6}), watch)
        for distribution, layers in watch.found.items():
            means = {name: statistics.mean(values) for name, values in layers.items()}
            rows.append({"model": model, "distribution": distribution, "events": len(next(iter(layers.values()))),
                         "mean": statistics.mean(means.values()), "layers": means})
    print(json.dumps({"command": "python scripts/heuristic_correlation.py DATA_DIR", "commit": commit(), "uncommitted_changes": uncommitted(),
                      "sparsity": options.sparsity, "batch": options.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
