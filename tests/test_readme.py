"""The README's Python blocks run as printed, and its times are those of the files in results/."""
import json
import re
from pathlib import Path

import pytest
import torch

import sparsekern

ROOT = Path(__file__).resolve().parent.parent


def test_first_code_block_runs(capsys):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["sparsifier"].subnets == ("0.8", "0.9")
    assert abs(names["sparsifier"].masks.sparsity("0.9") - 0.9) < 1e-4 and "0.9 0.9000 zeros" in printed
    assert names["accuracy"] > 0.5


def medians(name: str) -> set[str]:
    record = json.loads((ROOT / "results" / name).read_text())
    assert record["commit"] and not record["dirty"]
    return {f"{row['median_ms']:.1f} ms" for table in record["tables"] for row in table["rows"] if "median_ms" in row}


def steps() -> set[str]:
    record = json.loads((ROOT / "results/always_sparse_steps.json").read_text())
    assert record["commit"]
    return {f"{row[key]:.1f} ms" for row in record["rows"] for key in ("step_ms", "event_ms") if row[key] is not None}


@pytest.mark.parametrize("section, least, sources", [
    ("Always sparse", 15, [lambda: medians("cpu-csr.json"), lambda: medians("cpu-sparse-layers.json"), steps]),
    ("Structured", 20, [lambda: medians("cpu-structured.json"), lambda: medians("cpu-structured-layers.json")]),
    ("Every sparsity", 15, [lambda: medians("cpu-deploy.json"), lambda: medians("cpu-cocktail.json")]),
    ("Measured", 20, [lambda: medians("cpu-ops.json")]),
], ids=["always sparse", "structured", "every sparsity", "measured"])
def test_every_time_in_the_readme_was_measured(section, least, sources):
    text = (ROOT / "README.md").read_text().split(f"## {section}")[1].split("\n## ")[0]
    said, measured = re.findall(r"[\d.]+ ms", text), set().union(*(source() for source in sources))
    assert len(said) >= least and set(said) <= measured, sorted(set(said) - measured)


def test_the_always_sparse_block_runs(capsys):
    text = (ROOT / "README.md").read_text().split("## Always sparse")[1]
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    names = {"torch": torch, "sparsekern": sparsekern}
    exec(compile(code, "README.md", "exec"), names)
    assert "sparsity 0.9500" in capsys.readouterr().out
    names["model"](torch.randn(8, 3072)).sum().backward()
    names["sparsifier"].step()
    assert abs(names["sparsifier"].summary()[0]["sparsity"] - 0.95) < 1e-4


def test_the_structured_block_runs(capsys):
    text = (ROOT / "README.md").read_text().split("## Structured")[1]
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    names = {"torch": torch, "sparsekern": sparsekern}
    exec(compile(code, "README.md", "exec"), names)
    assert "sparsity 0.8750" in capsys.readouterr().out
    with torch.no_grad():
        assert names["model"](torch.randn(8, 1024)).shape == (8, 16)
    assert max(value.numel() for value in names["model"].state_dict().values()) == 1024 * 2048 // 8, "packed layers hold no dense weight"
