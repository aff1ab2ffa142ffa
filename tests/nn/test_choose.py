"""The choice between the two products is the measurement, and leaves the layer and the random state alone."""
import pytest
import torch

from sparsekern.nn import SparseConv2d, SparseLinear, choose
from sparsekern.nn.choose import choose_backend
from sparsekern.testing import threads


@pytest.fixture(autouse=True)
def forget():
    choose._measured.clear()
    yield
    choose._measured.clear()


def pretend(monkeypatch, csr, dense):
    """The layers take these seconds."""
    calls = []

    def timed(layer, x):
        calls.append((layer.backend, tuple(x.shape), x.dtype))
        return {"csr": csr, "dense": dense}[layer.backend]
    monkeypatch.setattr(choose, "_forward_and_backward", timed)
    return calls


@pytest.mark.parametrize("csr, dense, backend, words", [
    (0.001, 0.004, "csr", "sparse is 4.0x as fast"), (0.006, 0.004, "dense", "sparse takes 1.5x the time, so the dense product is kept"),
    (0.002, 0.002, "dense", "sparse takes 1.0x")])
def test_the_quicker_one_is_chosen(monkeypatch, csr, dense, backend, words):
    pretend(monkeypatch, csr, dense)
    choice = choose_backend(SparseLinear.from_shape(20, 10, sparsity=0.5), (7, 20))
    assert choice.backend == backend and words in choice.reason and choice.reason.startswith("input [7, 20]: ")
    assert (choice.sparse_ms, choice.dense_ms) == (1e3 * csr, 1e3 * dense)


def test_measured_once_per_setting(monkeypatch):
    calls = pretend(monkeypatch, 0.001, 0.001)
    layer, alike = (SparseLinear.from_shape(40, 30, sparsity=0.5, seed=seed) for seed in (0, 1))
    choose_backend(layer, (7, 40))
    count = len(calls)
    assert count == 2 * 10                                  # a warm-up and nine rounds of each
    choose_backend(alike, (7, 40))
    choose_backend(SparseLinear.from_shape(40, 30, sparsity=0.51), (7, 40))     # as good as the same number of nonzeros
    assert len(calls) == count
    for different in ({"shape": (8, 40)}, {"dtype": torch.bfloat16}, {"layer": SparseLinear.from_shape(40, 30, sparsity=0.9)}):
        choose_backend(different.pop("layer", layer), different.pop("shape", (7, 40)), **different)
        assert len(calls) == (count := count + 20)
    with torch.autocast("cpu", torch.bfloat16):
        choose_backend(layer, (7, 40))
    assert len(calls) == (count := count + 20)
    with threads(torch.get_num_threads() + 1):
        choose_backend(layer, (7, 40))
    assert len(calls) == count + 20


def test_a_clear_case_is_measured_shortly(monkeypatch):
    calls = pretend(monkeypatch, 0.001, 0.01)
    choose_backend(SparseLinear.from_shape(40, 30, sparsity=0.5), (7, 40))
    assert len(calls) == 2 * 4                              # a warm-up and three rounds of each


def test_a_slow_layer_is_measured_once(monkeypatch):
    calls = pretend(monkeypatch, 0.001, 0.001)
    monkeypatch.setattr(choose, "_BUDGET_S", 0.0)
    choose_backend(SparseLinear.from_shape(40, 30, sparsity=0.5), (7, 40))
    assert len(calls) == 2 * 2


@pytest.mark.parametrize("layer, shape", [
    (SparseLinear.from_shape(30, 20, sparsity=0.9, bias=False), (4, 5, 30)), (SparseConv2d.from_shape(4, 6, 3, sparsity=0.8), (2, 4, 8, 8))])
def test_really_measured_and_nothing_moves(layer, shape):
    layer.values.requires_grad_(False)
    before, random = {key: value.clone() for key, value in layer.state_dict().items()}, torch.get_rng_state()
    choice = choose_backend(layer, shape)
    assert choice.sparse_ms > 0 and choice.dense_ms > 0
    assert choice.backend == ("csr" if choice.sparse_ms < choice.dense_ms else "dense")
    assert layer.backend == "csr" and layer.values.grad is None and not layer.values.requires_grad
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_dense_weight_that_would_not_fit_is_never_formed(monkeypatch):
    calls = pretend(monkeypatch, 1.0, 0.001)
    layer = SparseLinear.from_shape(100_000, 100_000, nnz=50)
    found = choose.choose_backend(layer, (2, 100_000))
    assert (found.backend, found.sparse_ms, found.dense_ms) == ("csr", None, None) and not calls
    assert "the dense weight alone would take 37.3 GiB" in found.reason
