"""The bank of toys."""
import pytest
from one_thread import one_thread  # noqa: F401  a fixture


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
