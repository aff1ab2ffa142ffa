"""Switchable batch norm: every bank learns and normalises by itself, and the module keeps its tensors."""
import torch
from torch import nn

from sparsekern.nn.switchable_norm import NormBanks, find_norms


def test_banks_are_apart_and_the_first_is_the_modules_own():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
    own, keys = net[0].weight, list(net.state_dict())
    banks = NormBanks(find_norms(net), 3)
    assert net[0].weight is own and banks.banks[0]["0.weight"] is own
    banks.show(1)
    net(torch.randn(8, 4) + 5)
    assert net[0].weight is banks.banks[1]["0.weight"] and net[0].running_mean.abs().max() > 0.1 and net[0].num_batches_tracked == 1
    assert list(net.state_dict()) == keys and torch.equal(net.state_dict()["1.running_mean"], banks.banks[1]["1.running_mean"])
    banks.show(0)
    assert net[0].weight is own and net[0].num_batches_tracked == 0 and (net[0].running_mean == 0).all()
    banks.fold(1)
    assert net[0].weight is own and net[0].running_mean.abs().max() > 0.1


def test_one_sub_net_needs_no_banks():
    banks = NormBanks(find_norms(nn.BatchNorm1d(3)), 1)
    banks.show(0)
    assert banks.banks == [{}] and banks.owned() == {}


def test_parameters_join_the_group_of_their_module_and_leave():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD([{"params": net[0].parameters(), "lr": 1.0}, {"params": net[1].parameters(), "lr": 0.1}], lr=0.5)
    banks = NormBanks(find_norms(net), 3)
    banks.join(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]
    optimizer.state[banks.banks[2]["1.bias"]]["momentum_buffer"] = torch.zeros(3)
    banks.leave(optimizer)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2] and not optimizer.state
