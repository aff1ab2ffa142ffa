"""What a step of Sparse Cocktail costs beside the dense and masked steps, and the teacher's forward pass, that it consists of."""

import time

import pytest
import torch
from torch.nn import functional as F

import sparsekern
from sparsekern.support.models import build_model

_TURNS = 6  # mini-batches of a cycle: dense, u, dense, c, dense, nm


@pytest.mark.parametrize("model_name, batch", [("resnet20", 128), ("mlp:2048,2048", 128)])
def bench_cocktail_step(race, model_name, batch):
    """Means over a cycle, in the last of three stages. The parts: 3 dense SGD steps, 3 steps of a masked net, 3 forward passes of the teacher."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def made(algorithm=None, **fields):
        model = build_model(model_name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        return model, optimizer, algorithm and algorithm(model, optimizer, **fields)

    def train(sparsifier, steps):
        for _ in range(steps):
            sparsifier.loss(sparsifier.model, images, labels, F.cross_entropy).backward()
            sparsifier.step()
            sparsifier.optimizer.zero_grad()

    def cocktail(**fields):
        _, _, sparsifier = made(
            sparsekern.SparseCocktail, total_steps=4 * _TURNS, stages=3, nm_stages=[1, 2, 3], linear=model_name.startswith("mlp"), **fields)
        train(sparsifier, 4 * _TURNS)  # all its stages, of which the last one goes on
        assert sparsifier.stage(sparsifier.steps) == "stage 3/3" and sparsifier.turns(3)[5] == ("nm", "4:8")

        def cycle():
            start = time.perf_counter()
            train(sparsifier, _TURNS)
            return (time.perf_counter() - start) / _TURNS

        return cycle

    plain, sgd, _ = made()
    masked, masked_sgd, static = made(sparsekern.Static, sparsity=0.5, total_steps=10**6, allocation="uniform", skip_last=True)

    def dense():
        F.cross_entropy(plain(images), labels).backward()
        sgd.step()
        sgd.zero_grad()

    def sparse():
        F.cross_entropy(masked(images), labels).backward()
        static.step()
        masked_sgd.zero_grad()

    def parts():
        start = time.perf_counter()
        for _ in range(_TURNS // 2):
            dense()
            with torch.no_grad():
                plain(images)
            sparse()
        return (time.perf_counter() - start) / _TURNS

    def alone(step):
        def timed():
            start = time.perf_counter()
            step()
            return time.perf_counter() - start

        return timed

    race(
        "Sparse Cocktail step",
        f"{model_name}, batch {batch}, mean over a cycle of {_TURNS}",
        {
            "sparsekern Sparse Cocktail": cocktail(),
            "without distillation": cocktail(distill=False),
            "its parts": parts,
            "torch dense SGD": alone(dense),
            "sparsekern masked step": alone(sparse),
        },
        targets=[("sparsekern Sparse Cocktail", "<=", 1.05, "its parts")],
        budget_s=60,
    )
