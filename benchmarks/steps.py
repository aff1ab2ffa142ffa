"""Training as contenders of a race: a layer forward and backward, and whole steps."""
import torch
from torch.nn import functional as F

from sparsekern.support.models import build_model


def trained(layer, x, incoming):
    """One forward and backward with the gradients of everything, as in the middle of a net."""
    def run():
        x.grad = None
        layer.zero_grad()
        layer(x).backward(incoming)
    return run


def training_step(model_name, images, labels, attach=None, fused=None):
    """(step, sparsifier): forward, backward and update of a fresh model; attach(model, optimizer) makes the sparsifier that updates, if any does."""
    model = build_model(model_name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused)
    sparsifier = attach(model, optimizer) if attach else None
    updates = sparsifier or optimizer

    def step():
        F.cross_entropy(model(images), labels).backward()
        updates.step()
        optimizer.zero_grad()

    return step, sparsifier


def dense_steps(model_name, images, labels):
    """The peers: torch's default update, and its best one."""
    return {"torch dense SGD": training_step(model_name, images, labels)[0],
            "torch dense SGD fused": training_step(model_name, images, labels, fused=True)[0]}
