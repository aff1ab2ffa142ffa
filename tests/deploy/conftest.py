"""Tiny models: more threads than one only wait for each other. And the bank of toys."""
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The file of a FakeBank."""
    from bank_toys import FakeBank

    from sparsekern.deploy import bank_report
    path = tmp_path / "toy.safetensors"
    path.write_bytes(b"bank of a toy")
    monkeypatch.setattr(bank_report, "SubnetBank", FakeBank)
    return path


@pytest.fixture
def bank(drawn, monkeypatch):
    """The same; its page is written without plots, which take long."""
    from sparsekern.deploy import bank_page
    monkeypatch.setattr(bank_page, "_figures", lambda report: "")
    return drawn
