"""What IEE costs in each of its phases: whole steps of H, J and Q beside a dense SGD step, and an event of each kind."""

import time

import pytest
import torch
from steps import dense_steps, training_step
from torch.nn import functional as F

import sparsekern
from sparsekern.support.models import build_model

_LONG = 10**6                                           # steps: no phase ends while it is timed


@pytest.mark.parametrize("model_name, batch", [("resnet20", 128), ("mlp:2048,2048", 128)])
def bench_iee_step(race, model_name, batch):
    """Forward, backward and update at 90 % (ERK); H has the whole budget, J what is left after a prune of 30 % of it, Q is dense."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def iee(phase, **lengths):
        step, sparsifier = training_step(model_name, images, labels, lambda model, optimizer: sparsekern.IEE(
            model, optimizer, sparsity=0.9, total_steps=4 * _LONG, **{"h_steps": 1, "j_steps": 0, "q_steps": 1} | lengths))
        if phase != "estimate":
            step()                                      # phase H is over
        assert sparsifier.phase == phase
        return step

    race(
        "IEE step",
        f"{model_name}, batch {batch}",
        {
            "sparsekern IEE, phase H": iee("estimate", h_steps=_LONG),
            "sparsekern IEE, phase J": iee("improve", j_steps=_LONG),
            "sparsekern IEE, phase Q": iee("explore", q_steps=_LONG),
            **dense_steps(model_name, images, labels),
        },
        targets=[(f"sparsekern IEE, phase {phase}", "<=", 1.05, "torch dense SGD") for phase in "HJ"],
        budget_s=60,
    )


@pytest.mark.parametrize("allocation", ["erk", "nonuniform"])
def bench_iee_event(race, allocation):
    """A prune and a grow of ResNet-20 with their metrics, beside one dense training step (an event comes every 225 of those in the paper)."""
    model = build_model("resnet20")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    sparsifier = sparsekern.IEE(model, optimizer, total_steps=_LONG, h_steps=1, j_steps=0, q_steps=1, allocation=allocation)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    F.cross_entropy(model(images), labels).backward()
    sparsifier.step()

    @torch.no_grad()
    def event(moment):
        sparsifier.steps = moment                       # of the first cycle: phase H ends with step 0, phase Q with step 1
        start = time.perf_counter()
        sparsifier.on_phase_end(sparsifier.timeline.at(moment))
        return time.perf_counter() - start

    race(
        "IEE event",
        f"resnet20, 90 %, {allocation}",
        {"sparsekern grow": lambda: event(1), "sparsekern prune": lambda: event(0), "torch dense step": training_step("resnet20", images, labels)[0]},
        budget_s=20,
    )
