"""Banks of real trainings, deployed and measured with a real clock: what must hold whatever the machine."""
import pytest
import torch

import sparsekern
from sparsekern.deploy.bank import SubnetBank
from sparsekern.deploy.bank_report import fit, read_report, report_bank, report_path, text_table
from sparsekern.support.models import build_model

MODEL = {"name": "mlp:64,32", "classes": 10, "shape": [1, 8, 8]}
CONV = {"name": "small_cnn", "classes": 10, "shape": [1, 8, 8]}


def bank_of(path, algorithm: str, named: dict, known: bool = True, **fields) -> SubnetBank:
    torch.manual_seed(0)
    net = build_model(named["name"], classes=named["classes"], shape=tuple(named["shape"]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    sparsifier = sparsekern.algorithms.build(algorithm, net, optimizer, total_steps=40, **fields)
    for step in range(12):
        images = torch.rand(8, *named["shape"], generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(net(images), torch.arange(8)).backward()
        sparsifier.step()
        optimizer.zero_grad()
    bank = SubnetBank.from_sparsifier(sparsifier, model=named if known else None,
                                      accuracy={name: 0.5 + place / 100 for place, name in enumerate(sparsifier.subnets)})
    bank.save(path)
    return bank


@pytest.mark.parametrize("algorithm, named, fields", [
    ("static", MODEL, {"sparsity": 0.9}), ("gse", MODEL, {"sparsity": 0.9, "storage": "csr"}), ("static", CONV, {"sparsity": 0.9}),
    ("ast-gc", CONV, {"pattern": "nm", "nm": "2:4,1:4"}), ("ast-gc", MODEL, {"sparsity": [0.8, 0.95]})])
def test_every_kind_of_bank(tmp_path, algorithm, named, fields):
    path = tmp_path / "bank.safetensors"
    bank = bank_of(path, algorithm, named, **fields)
    before = path.read_bytes()
    found = report_bank(path, batch=4, rounds=2, progress="none")
    assert read_report(report_path(path)) == found and path.read_bytes() == before
    assert [row["name"] for row in found["subnets"]] == list(bank.names())
    layers = sum(isinstance(module, torch.nn.Linear | torch.nn.Conv2d) for module in bank.plain(bank.names()[0]).modules())
    dense = found["dense"]
    for row in found["subnets"]:
        own = bank.subnet(row["name"])
        assert (row["sparsity"], row["nnz"], row["accuracy"], row["pattern"]) == (own.sparsity, own.nnz, own.accuracy, own.pattern)
        assert sum(row["forms"].values()) == layers == len(row["layers"]) and all(layer["reason"] for layer in row["layers"])
        assert len(row["times"]) == 2 and row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]
        assert row["difference"] < 1e-4 and row["peak_bytes"] > 0
        if own.sparsity:
            assert row["flops"] < dense["flops"] and row["parameters"] < dense["parameters"] and row["file_bytes"] < dense["file_bytes"]
    assert fit(path, latency_ms=1e6) == bank.names()[-1] == SubnetBank.load(path).fit(latency_ms=1e6)
    assert all(name in text_table(found) for name in bank.names())


def test_figures_of_a_static_net_by_hand(tmp_path):
    path = tmp_path / "bank.safetensors"
    bank = bank_of(path, "static", MODEL, sparsity=0.9)
    found = report_bank(path, batch=4, rounds=1, progress="none")
    row, nnz = found["subnets"][0], bank.subnet(bank.names()[0]).nnz
    whole = sum(weight.numel() for weight in bank.plain(bank.names()[0]).parameters())
    prunable = round(nnz / (1 - row["sparsity"]))
    assert found["dense"]["parameters"] == whole and row["parameters"] == whole - prunable + nnz
    assert found["dense"]["flops"] == 2 * (64 * 64 + 64 * 32 + 32 * 10) and row["flops"] == found["dense"]["flops"] - 2 * (prunable - nnz)
    assert found["dense"]["weight_bytes"] == found["dense"]["file_bytes"] == 4 * whole


def test_a_bank_that_names_no_model_is_measured_with_one(tmp_path):
    path = tmp_path / "bank.safetensors"
    bank_of(path, "static", MODEL, known=False, sparsity=0.9)
    with pytest.raises(ValueError, match="shape"):
        report_bank(path, progress="none")
    model = build_model(MODEL["name"], shape=tuple(MODEL["shape"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = report_bank(path, batch=4, rounds=1, progress="none", model=model, shape=MODEL["shape"])
    assert found["complete"] and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folding_is_part_of_the_setting(tmp_path):
    path = tmp_path / "bank.safetensors"
    bank_of(path, "static", CONV, sparsity=0.9)
    whole = report_bank(path, batch=4, rounds=1, progress="none", fold=False)["subnets"][0]
    folded = report_bank(path, batch=4, rounds=1, progress="none")
    assert folded["setup"]["fold"] and folded["subnets"][0]["parameters"] <= whole["parameters"]
    with pytest.raises(ValueError, match="fold was True, now False"):
        report_bank(path, batch=4, rounds=1, progress="none", fold=False, resume=True)
