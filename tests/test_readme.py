"""The README's first Python block runs as printed."""
import json
import re
from pathlib import Path


def test_first_code_block_runs(capsys):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["sparsifier"].subnets == ("0.8", "0.9")
    assert abs(names["sparsifier"].masks.sparsity("0.9") - 0.9) < 1e-4 and "0.9 0.9000 zeros" in printed
    assert names["accuracy"] > 0.5


def test_every_time_in_the_readme_was_measured():
    root = Path(__file__).parent.parent
    record = json.loads((root / "results/cpu-ops.json").read_text())
    measured = {f"{row['median_ms']:.1f} ms" for table in record["tables"] for row in table["rows"] if "median_ms" in row}
    section = (root / "README.md").read_text().split("## Measured")[1].split("\n## ")[0]
    said = re.findall(r"[\d.]+ ms", section)
    assert len(said) >= 20 and set(said) <= measured, sorted(set(said) - measured)
    assert record["commit"] and not record["dirty"]
