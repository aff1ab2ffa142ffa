"""Two processes that train one model by DistributedDataParallel keep one topology, that of one process with both batches."""
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sparsekern
from sparsekern.sparsity.ranks import Ranks

STEPS = 12


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 32), nn.ReLU(), nn.Linear(32, 4)).double()


def batch(step, part):
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    y = torch.randint(4, (8,), generator=torch.Generator().manual_seed(step + 1000))
    return x[part], y[part]


def trained(distribution, storage, rank=None):
    torch.set_num_threads(1)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sparsekern.GSE(model, optimizer, sparsity=0.8, total_steps=100, delta_t=3, distribution=distribution, storage=storage)
    part = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    for step in range(STEPS):
        x, y = batch(step, part)
        nn.functional.cross_entropy(wrapped(x), y).backward()
        sparsifier.step()
        optimizer.zero_grad()
    assert len(sparsifier.history) == STEPS // 3 and sum(sparsifier.history[0]["grown"]) > 10
    sparsifier.remove(sparsifier.net)
    return model.state_dict()


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {f"{d}/{s}": trained(d, s, rank) for d, s in (("uniform", "csr"), ("grabo", "csr"), ("graest", "csr"), ("grabo", "masked"))}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ranks_agree_with_each_other_and_with_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, state in one.items():
        assert all(torch.equal(value, other[name][key]) for key, value in state.items()), name
        if "graest" not in name:                            # its signs belong to a rank's samples
            for key, value in trained(*name.split("/")).items():
                torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}")


def test_alone_nothing_is_sent():
    ranks, tensor = Ranks(), torch.ones(3)
    assert ranks.count == 1 and ranks.rank == 0 and ranks.sum(tensor)[0] is tensor
    ranks.mean_([tensor])
    assert torch.equal(tensor, torch.ones(3))
