"""A small net under AST_GC and its training loop, shared by the tests of the engine and of the algorithm."""
import pytest
import torch
from torch import nn

import sparsekern
from sparsekern.testing import small_convnet, threads, toy_batch

SUBNETS = (0.5, 0.8, 0.9)


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small only wait for each other's threads. Import it where it should act."""
    with threads(1):
        yield


def make(optimizer="sgd", net=None, total_steps=60, sparsity=SUBNETS, dtype=torch.float32, lr=0.05, **fields):
    """A small net, its optimizer and an attached AST_GC."""
    torch.manual_seed(1)
    net = (net or small_convnet()).to(dtype)
    optimizer = {"sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=1e-3, nesterov=True),
                 "plain": lambda p: torch.optim.SGD(p, lr=lr),
                 "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3),
                 "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3)}[optimizer](net.parameters())
    return net, optimizer, sparsekern.AST_GC(net, optimizer, sparsity=sparsity, total_steps=total_steps, **fields)


def backward(net, step, scaler=None, factor=1.0):
    x, y = toy_batch(step)
    loss = nn.functional.cross_entropy(net(x.to(next(net.parameters()).dtype)), y) * factor
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss.item()


def train(net, sparsifier, steps, **arguments):
    losses = []
    for step in steps:
        losses.append(backward(net, step))
        sparsifier.step(**arguments)
        sparsifier.optimizer.zero_grad()
    return losses
