"""The README's first Python block runs as printed."""
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
