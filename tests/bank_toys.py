"""A bank of five small sub-nets, and a clock that shows what it is told: for reports without measuring."""
from types import SimpleNamespace

import torch
from torch import nn

from sparsekern.deploy import bank_report
from sparsekern.deploy.bank_report import machine, report_bank

MS = {"dense": 8.0, "u0.5": 4.0, "u0.9": 2.0, "2:4": 10.0, "c0.5": 1.0}                       # what the fake clock shows
ACCURACY = {"dense": 0.9, "u0.5": 0.91, "u0.9": 0.8, "2:4": 0.89, "c0.5": None}


def net(tag: str, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 4)).eval()
    made.tag = tag
    return made


class FakeBank:
    """A bank of five sub-nets of a small net; unstructured ones run in "csr", the channel one is narrow."""
    meta = {"model": {"name": "toy", "classes": 4, "shape": [1, 4, 4]}}
    forms = {"dense": "dense", "u0.5": "dense", "u0.9": "csr", "2:4": "packed", "c0.5": "slim"}
    deployed: list[str] = []

    @classmethod
    def load(cls, path):
        if path.read_bytes()[:4] != b"bank":
            raise ValueError(f"{path.name}: not a bank")
        cls.deployed = []
        return cls()

    def names(self):
        return tuple(MS)

    def subnet(self, name):
        pattern = {"u": "unstructured", "c": "channel"}.get(name[0], name)
        return SimpleNamespace(name=name, pattern=pattern, sparsity=0.0 if name == "dense" else 0.5, nnz=100, accuracy=ACCURACY[name], masks={})

    def plain(self, name, model=None):
        made = net(name)
        if name != "dense":
            with torch.no_grad():
                made[3].weight[:, ::2] = 0
        return made

    def deploy(self, name, device="cpu", batch=128, *, model=None, example=None, fold=False):
        assert example.shape == (batch, 1, 4, 4)
        self.deployed.append(name)
        made = net(name, 4 if name == "c0.5" else 8)
        layer = SimpleNamespace(name="3", form=self.forms[name], reason="<because> it is & was", ms=0.1, dense_ms=None)
        made.deployment = SimpleNamespace(layers=(layer,), notes=("a note",), difference=0.0)
        return made


class Clock:
    """Shows MS under a drift that grows with every look: ratios of neighbours hardly feel it."""
    def __init__(self, drift: float = 0.0, stop: int | None = None):
        self.looks, self.drift, self.stop = 0, drift, stop

    def __call__(self, one, images):
        self.looks += 1
        if self.looks == self.stop:
            raise KeyboardInterrupt
        return MS[one.tag] * (1 + self.drift * self.looks)


def report(bank, **options) -> dict:
    return report_bank(bank, **{"batch": 2, "rounds": 4, "progress": "none", "timer": Clock()} | options)


def hand_made(rows: list[dict]) -> dict:
    dense = {"latency_ms": 1.0, "latency_low_ms": 1.0, "latency_high_ms": 1.0, "parameters": 1, "flops": 1.0, "file_bytes": 1, "weight_bytes": 1,
             "peak_bytes": 1, "memory_bytes": 2, "file_form": "whole"}
    return {"format": bank_report.FORMAT, "complete": True, "machine": machine("cpu"), "setup": {"batch": 1, "shape": [4], "fold": False},
            "rounds": 1, "bank": {"file": "b.safetensors", "sha256": "0" * 64, "bytes": 1, "subnets": [row["name"] for row in rows], "model": None},
            "versions": {}, "command": "sparsekern report", "finished": "now", "commit": None, "uncommitted_changes": None, "dense": dense,
            "subnets": rows}
