"""From a bank to a plain module, and from a run to its bank."""
import json

import channel_runs
import pytest
import torch
from test_bank import outputs, trained

import sparsekern
from sparsekern.deploy.bank import SubnetBank
from sparsekern.deploy.bank_file import BankError
from sparsekern.deploy.bank_of_run import FILE, describe, write_bank
from sparsekern.deploy.channel_report import channel_report
from sparsekern.support.models import build_model
from sparsekern.testing import small_convnet, toy_batch
from sparsekern.training import TrainConfig, train


@pytest.mark.parametrize("kind", ["ast-gc", "ast-gc nm", "gse csr", "halp", "dense"])
def test_what_is_deployed_computes_what_was_trained(tmp_path, kind):
    net, sparsifier = trained(kind, tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), channel_runs.Small() if kind == "halp" else small_convnet()
    for name, wanted in outputs(net, sparsifier).items():
        deployed = bank.deploy(name, model=model, example=toy_batch(1, 4)[0], rounds=1)
        with torch.no_grad():
            torch.testing.assert_close(deployed(toy_batch(99)[0]), wanted, rtol=1e-3, atol=1e-4)
        assert deployed.deployment.pattern == bank.subnet(name).pattern and deployed.deployment.batch == 4
    if kind == "halp":
        assert sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["ast-gc", "ast-gc nm", "static"])
def test_deploy_on_every_device(tmp_path, kind, device):
    net, sparsifier = trained(kind, tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), small_convnet()
    for name, wanted in outputs(net, sparsifier).items():
        deployed = bank.deploy(name, device, model=model, example=toy_batch(1, 4)[0], rounds=1)
        assert {tensor.device.type for tensor in deployed.state_dict().values()} == {device.type}
        with torch.no_grad():
            torch.testing.assert_close(deployed(toy_batch(99)[0].to(device)).cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_deploy_takes_the_shape_from_the_bank(tmp_path):
    _, sparsifier = trained("static", tmp_path, build_model("small_cnn", classes=4, shape=(3, 8, 8)))
    bank = SubnetBank.from_sparsifier(sparsifier, model={"name": "small_cnn", "classes": 4, "shape": [3, 8, 8]})
    assert bank.deploy("0.8", "cpu", 2, rounds=1, fold=True).deployment.batch == 2
    with pytest.raises(BankError, match="batch: expected at least 1"):
        bank.deploy("0.8", batch=0)
    with pytest.raises(BankError, match="pass example="):
        SubnetBank.from_sparsifier(sparsifier).deploy("0.8", model=bank.model())


def test_the_report_of_a_bank_and_what_fits(tmp_path):
    from sparsekern.deploy.bank_report import report_bank
    _, sparsifier = trained("ast-gc", tmp_path, build_model("small_cnn", classes=4, shape=(3, 8, 8)))
    bank = SubnetBank.from_sparsifier(sparsifier, model={"name": "small_cnn", "classes": 4, "shape": [3, 8, 8]},
                                      accuracy={"0.5": 0.7, "0.8": 0.9, "0.9": 0.6})
    with pytest.raises(ValueError, match="save it"):
        bank.fit(latency_ms=1)
    path = bank.save(tmp_path / "b.safetensors")
    report = report_bank(path, batch=2, rounds=1, progress="none")
    assert [(row["name"], row["nnz"]) for row in report["subnets"]] == [(name, bank.subnet(name).nnz) for name in bank.names()]
    assert SubnetBank.load(path).fit(latency_ms=1e6) == bank.fit(memory_mb=1e6) == "0.8"
    with pytest.raises(ValueError, match="no sub-net measured keeps 1e-09 ms"):
        bank.fit(latency_ms=1e-9)


def small(out, algorithm, **options):
    options = {"sparsity": (0.5, 0.9)} | options if algorithm == "ast-gc" else options
    sparsity = options.pop("sparsity", None)
    return TrainConfig(algorithm=algorithm, sparsity=sparsity, model="small_cnn", out=str(out), subset=64, batch_size=16, epochs=5, threads=1,
                       device="cpu", progress="none", eval_batch=500, options=options)


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "")


@pytest.mark.parametrize("algorithm", ["ast-gc", "static", "dense"])
def test_a_run_leaves_its_bank(tmp_path, algorithm):
    report = train(small(tmp_path, algorithm), on_end=write_bank)
    accuracies = {row["name"]: row["accuracy"] for row in report["subnets"]}
    said = json.loads((tmp_path / "report.json").read_text())["bank"]
    bank = SubnetBank.load(tmp_path / FILE)
    assert bank.names() == tuple(accuracies)
    assert {name: bank.subnet(name).accuracy for name in bank.names()} == accuracies
    assert bank.meta["model"] == {"name": "small_cnn", "classes": 10, "shape": [1, 8, 8]}
    assert bank.meta["algorithm"] == algorithm and bank.meta["data"] == "digits" and bank.meta["versions"]["torch"] == torch.__version__
    assert said["file_bytes"] == (tmp_path / FILE).stat().st_size and said["subnets"] == len(accuracies)
    whole = sum(value.nbytes for value in build_model("small_cnn", shape=(1, 8, 8)).state_dict().values())
    assert said["weights_bytes"] == whole and said["separate_dense_bytes"] == whole * len(accuracies)
    # separately: bits of every masked weight beside the kept ones
    masked = whole * len(accuracies) - sum(4 * (row["prunable"] - row["nnz"]) for row in report["subnets"])
    bits = sum(4 * -(-layer["numel"] // 32) for row in report["subnets"] for layer in row["layers"].values() if layer["sparsity"] > 0)
    assert said["separate_masked_bytes"] <= masked + bits
    assert said["separate_masked_bytes"] >= masked + (0 if algorithm == "dense" else 1)
    assert describe(said).startswith(f"bank: {len(accuracies)} sub-net") and FILE in describe(said)


def test_a_channel_run_writes_its_bank_before_it_is_slimmed(tmp_path):
    channel_runs.hand_table(build_model("small_cnn", shape=(1, 8, 8)), tmp_path / "t.json", shape=(1, 8, 8))
    report = train(small(tmp_path / "run", "halp", table=str(tmp_path / "t.json"), latency=0.55),
                   on_end=lambda run: write_bank(run) | channel_report(run))
    bank = SubnetBank.load(tmp_path / "run" / FILE)
    subnet = bank.subnet(bank.names()[0])
    assert subnet.pattern == "channel" and subnet.target is None and subnet.sparsity == report["subnets"][0]["sparsity"] > 0
    deployed = bank.deploy(subnet.name, batch=4, rounds=1, prefer="memory")
    assert sum(parameter.numel() for parameter in deployed.parameters()) <= report["slim"]["parameters"]


def test_the_front_of_the_package_has_it():
    assert sparsekern.SubnetBank is SubnetBank and "SubnetBank" in sparsekern.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        sparsekern.Nothing  # noqa: B018
