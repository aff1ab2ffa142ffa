"""A small net under an algorithm that is sparse from the start, shared by the tests of those algorithms."""
import copy

import torch
from ast_gc_runs import backward, one_thread, train  # noqa: F401

from sparsekern import algorithms
from sparsekern.sparsity.stores import flat_places, matrix
from sparsekern.testing import small_convnet, toy_batch

OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
              "plain": lambda p: torch.optim.SGD(p, lr=0.05),
              "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3)}


def make(name, optimizer="sgd", net=None, total_steps=60, sparsity=0.8, dtype=torch.float32, **fields):
    torch.manual_seed(1)
    net = (net or small_convnet()).to(dtype)
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    return net, optimizer, algorithms.build(name, net, optimizer, total_steps=total_steps, sparsity=sparsity, **fields)


def accuracy(net):
    net.eval()
    x, y = toy_batch(10_000, size=256)
    with torch.no_grad():
        found = (net(x.to(next(net.parameters()).dtype)).argmax(1) == y).float().mean().item()
    net.train()
    return found


def state(net, optimizer, sparsifier):
    return copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))


def assert_same_state(one, other):
    """Equal bits in the model, the optimizer and the sparsifier."""
    (model, optimizer, own), (model2, optimizer2, own2) = one, other
    assert model.keys() == model2.keys() and all(torch.equal(model[key], model2[key]) for key in model)
    assert own["meta"] == own2["meta"] and own["tensors"].keys() == own2["tensors"].keys()
    assert all(torch.equal(own["tensors"][key], own2["tensors"][key]) for key in own["tensors"])
    assert optimizer["state"].keys() == optimizer2["state"].keys()
    for index, entry in optimizer["state"].items():
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer2["state"][index][key])) for key, value in entry.items())


def resumed(name, optimizer, stop, total, sparsifier_first=False, **fields):
    """(losses and state of an unbroken run from `stop` on, those of one that was saved and loaded there)."""
    net, opt, sparsifier = make(name, optimizer, **fields)
    train(net, sparsifier, range(stop))
    saved = state(net, opt, sparsifier)
    losses = train(net, sparsifier, range(stop, total))
    other, other_opt, other_sparsifier = make(name, optimizer, **fields)
    train(other, other_sparsifier, range(2))                            # whatever is there is replaced
    if sparsifier_first:
        other_sparsifier.load_state_dict(saved[2])
    other.load_state_dict(saved[0])
    other_opt.load_state_dict(saved[1])
    if not sparsifier_first:
        other_sparsifier.load_state_dict(saved[2])
    again = train(other, other_sparsifier, range(stop, total))
    return (losses, state(net, opt, sparsifier)), (again, state(other, other_opt, other_sparsifier))


def make_gse(**fields):
    return make("gse", **({"delta_t": 5, "end": 50} | fields))


def places(sparsifier):
    """Flat positions of the connections of every layer."""
    return [flat_places(*sparsifier.store.pattern(index)[:2], matrix(layer.shape)[1]) for index, layer in enumerate(sparsifier.layers)]


def values(sparsifier):
    return [sparsifier.store.pattern(index)[2] for index in range(len(sparsifier.layers))]
