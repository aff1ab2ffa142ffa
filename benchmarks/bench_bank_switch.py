"""Switching between 24 sub-nets of a ResNet-18: pointers of a bank against load_state_dict of a whole model, and the bytes that either holds."""
import random
import time

import torch

import sparsekern
from sparsekern.deploy import SubnetBank
from sparsekern.support.models import build_model

SUBNETS, TARGET_MS = 24, 1.0


def random_bank():
    """24 nested unstructured sub-nets with norms of their own, as masks at random."""
    model = build_model("resnet18")
    sparsities = [0.04 * (number + 1) for number in range(SUBNETS)]
    sparsifier = sparsekern.AST_GC(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=sparsities, delta_t=24, offset=0, total_steps=5000)
    scores = {layer: torch.rand(weight.shape) for layer, weight in zip(sparsifier.masks.layers, sparsifier.weights)}
    for name, level in zip(sparsifier.subnets, sparsities):
        sparsifier.set_masks(name, {layer: score > level for layer, score in scores.items()})
    with torch.no_grad():
        for number, norms in enumerate(sparsifier.norms.banks):
            for value in norms.values():
                value += number
    return SubnetBank.from_sparsifier(sparsifier)


def bench_switch(race, note):
    bank, model, whole = random_bank(), build_model("resnet18").eval(), build_model("resnet18").eval()
    names = bank.names()
    states = [{key: value.clone() for key, value in whole.state_dict().items()} for _ in range(3)]
    start = time.perf_counter()
    bank.activate(model, names[0])
    first = time.perf_counter() - start
    choose = random.Random(0)

    def switch():
        name = choose.choice(names)
        start = time.perf_counter()
        bank.activate(model, name)
        return time.perf_counter() - start

    def verify():
        x = torch.rand(2, 3, 32, 32)
        for name in (names[3], names[20]):
            with torch.no_grad():
                torch.testing.assert_close(bank.activate(model, name)(x), bank.plain(name, whole)(x), rtol=1e-4, atol=1e-4)

    took = {}
    race("bank_switch", f"ResNet-18, {SUBNETS} sub-nets", {
        "sparsekern activate": switch,
        "load_state_dict": lambda: whole.load_state_dict(choose.choice(states)) and None,
    }, check={"sparsekern activate": verify}, rounds=60, notes=lambda medians: took.update(medians) or [])
    size, held = bank.size(), vars(model)["_sparsekern_bank"].nbytes()
    ms = took["sparsekern activate"] * 1000
    note("bank_switch", f"ResNet-18, {SUBNETS} sub-nets", [
        f"{'met' if ms < TARGET_MS else 'MISSED'}: a switch below {TARGET_MS:g} ms: {ms:.4f} ms",
        f"the first activation, which copies the weights and unpacks the levels: {first * 1000:.0f} ms",
        f"file without header {size['total'] / 1e6:.1f} MB (weights {size['weights'] / 1e6:.1f}, masks {size['masks'] / 1e6:.1f}, norms "
        f"{size['norms'] / 1e6:.1f}), as {SUBNETS} whole models {SUBNETS * size['weights'] / 1e6:.0f} MB",
        f"on the model, masks and norms hold {held / 1e6:.1f} MB beside the weights"])
