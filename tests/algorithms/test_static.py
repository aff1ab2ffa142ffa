"""Static: the drawn net is exact, as its seed says, and stays."""
import pytest
import torch
from dynamic_runs import accuracy, assert_same_state, backward, make, one_thread, resumed, train  # noqa: F401

from sparsekern.sparsity.allocation import allocate
from sparsekern.sparsity.patterns import kept
from sparsekern.testing import small_convnet

# The start.


@pytest.mark.parametrize("allocation", ["er", "erk", "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95])
def test_the_start_has_exactly_the_counts_of_the_allocation(allocation, sparsity):
    net, _, sparsifier = make("static", sparsity=sparsity, allocation=allocation)
    assert sparsifier.masks.layers == ("0.weight", "3.weight", "6.weight", "11.weight")        # the first convolution, too
    counts = [int(mask.sum()) for mask in sparsifier.masks[sparsifier.net]]
    assert counts == sparsifier.masks.counts(sparsifier.net) and sum(counts) == kept(sparsifier.masks.numel, sparsity)
    assert counts == allocate(allocation, [w.shape for w in sparsifier.weights], sum(counts))
    for weight, mask in zip(sparsifier.weights, sparsifier.masks[sparsifier.net]):
        assert (weight[~mask] == 0).all() and (weight[mask] != 0).all()


def test_er_takes_the_flattened_kernel():
    """By hand: raw densities (8 + 27) / 216 and (16 + 144) / 2304 share 252 of 2520 weights, epsilon = 252 / 195."""
    assert allocate("er", [torch.Size((8, 3, 3, 3)), torch.Size((16, 16, 3, 3))], 252) == [45, 207]
    assert allocate("erk", [torch.Size((8, 3, 3, 3)), torch.Size((16, 16, 3, 3))], 63) == [19, 44]


def test_keep_leaves_the_values_of_the_model():
    torch.manual_seed(1)
    before = [p.clone() for p in small_convnet().parameters()]
    net, _, sparsifier = make("static", init="keep")
    masks = {layer.name: mask for layer, mask in zip(sparsifier.layers, sparsifier.masks[sparsifier.net])}
    for (name, now), old in zip(net.named_parameters(), before):
        assert torch.equal(now, old * masks[name] if name in masks else old)


def test_channels_last_draws_the_same_net():
    nets = [make("static", net=small_convnet().to(memory_format=layout))[0] for layout in (torch.contiguous_format, torch.channels_last)]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


# The run.


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_mask_stays_and_hidden_weights_keep_their_bits(optimizer):
    net, _, sparsifier = make("static", optimizer)
    before = [mask.clone() for mask in sparsifier.masks[sparsifier.net]]
    train(net, sparsifier, range(30))
    for weight, mask, old in zip(sparsifier.weights, sparsifier.masks[sparsifier.net], before):
        assert torch.equal(mask, old) and (weight[~mask] == 0).all()
    assert sparsifier.history == [] and sparsifier.metrics()["events"] == []


def test_it_learns_and_resumes():
    net, _, sparsifier = make("static", total_steps=150)
    train(net, sparsifier, range(150))
    assert accuracy(net) > 0.9
    unbroken, again = resumed("static", "sgd", 12, 30)
    assert unbroken[0] == again[0]
    assert_same_state(unbroken[1], again[1])


def test_removing_leaves_zeros_in_the_weights():
    net, _, sparsifier = make("static")
    train(net, sparsifier, range(5))
    sparsifier.remove(sparsifier.net)
    assert sum(int((weight != 0).sum()) for weight in sparsifier.weights) == kept(sparsifier.masks.numel, 0.8)


# Misuse.


@pytest.mark.parametrize("fields, message", [
    ({"sparsity": 1.0}, r"fraction of zeros in \[0, 1\), got 1.0"), ({"sparsity": 90}, "did you mean 0.9"),
    ({"sparsity": [0.8, 0.9]}, "trains one net, expected one number"), ({"allocation": "global"}, "allocation: expected one of er, erk"),
    ({"init": "zero"}, "init: expected one of fan_in, keep"), ({"sparsity": 0.9995}, "leaves no weight in"),
    ({"only": "nothing"}, "nothing to prune"), ({"total_steps": 0}, "total_steps")])
def test_configurations_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make("static", **fields)


def test_a_list_of_one_sparsity_is_that_sparsity():
    assert make("static", sparsity=(0.9,))[2].summary()[0]["target_sparsity"] == 0.9
