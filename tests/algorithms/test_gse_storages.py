"""GSE over sparse layers against the dense simulation of the same seeds: one algorithm in two storages."""

import pytest
import torch
from dynamic_runs import accuracy, assert_same_state, backward, make, make_gse, one_thread, places, resumed, state, train, values  # noqa: F401
from torch import nn

from sparsekern.testing import small_convnet


class Tokens(nn.Module):
    """Grouped, depthwise and dilated convolutions, linear layers over tokens, and one layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4, stride=2, padding=1), nn.ReLU(),
                                   nn.Conv2d(16, 16, 3, groups=16, padding="same", dilation=2), nn.BatchNorm2d(16))
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.convs(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(torch.relu(self.mix(x))).mean(1))


NETS = {"convnet": small_convnet, "tokens": Tokens}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("distribution", ["uniform", "grabo", "graest"])
def test_sparse_layers_and_the_dense_simulation_are_one_algorithm(distribution, scope, net):
    fields = {"distribution": distribution, "scope": scope, "dtype": torch.float64, "sparsity": 0.75, "delta_t": 4, "event_batches": 2}
    runs = [make_gse(net=NETS[net](), storage=storage, **fields) for storage in ("csr", "masked")]
    for step in range(44):
        losses = [train(own, sparsifier, [step])[0] for own, _, sparsifier in runs]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        if step % 4 == 3:
            assert all(torch.equal(a, b) for a, b in zip(*[places(sparsifier) for *_, sparsifier in runs]))
            for a, b in zip(*[values(sparsifier) for *_, sparsifier in runs]):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    records = [[{k: v for k, v in record.items() if k != "flips"} for record in sparsifier.history] for *_, sparsifier in runs]
    assert records[0] == records[1] and len(records[0]) == 11 and sum(sum(record["grown"]) for record in records[0]) > 100
    runs[0][2].remove(runs[0][2].net)
    for (name, a), b in zip(runs[0][0].state_dict().items(), runs[1][0].state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_micro_batches_and_any_optimizer_agree_with_the_simulation(optimizer):
    runs = [make_gse(optimizer=optimizer, storage=storage, distribution="grabo", dtype=torch.float64) for storage in ("csr", "masked")]
    for net, opt, sparsifier in runs:
        for step in range(20):
            backward(net, 2 * step)
            backward(net, 2 * step + 1)
            sparsifier.step(max_norm=1.0)
            opt.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*[places(sparsifier) for *_, sparsifier in runs]))
    for a, b in zip(*[values(sparsifier) for *_, sparsifier in runs]):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("storage", ["csr", "masked"])
def test_the_scale_of_a_gradient_scaler_is_taken_out(storage):
    results = []
    for scale in (None, 2.0 ** 12):
        net, opt, sparsifier = make_gse(dtype=torch.float64, storage=storage, prune_schedule="constant")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10 ** 6) if scale else None
        for step in range(12):
            backward(net, step, scaler)
            sparsifier.step(scaler=scaler)
            if scaler:
                scaler.update()
            opt.zero_grad()
        results.append((places(sparsifier), values(sparsifier)))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0]))
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
