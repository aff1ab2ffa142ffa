"""The README's block on Sparse Cocktail and its bank runs as printed."""
import re
from pathlib import Path

import torch

import sparsekern

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_block_runs(capsys):
    text = README.read_text().split("## Every sparsity at once")[1]
    names = {"torch": torch, "sparsekern": sparsekern}
    exec(compile(re.search(r"```python\n(.*?)```", text, re.S).group(1), "README.md", "exec"), names)
    bank, net = names["bank"], names["net"]
    assert bank.names() == ("dense", "u1", "u2", "c1", "c2", "2:4") and [row["sparsity"] for row in bank.meta["subnets"]][0] == 0
    assert "channel on cpu" in capsys.readouterr().out
    assert net(names["images"][:4]).shape == (4, 10)
    x = names["images"][:8]
    with torch.no_grad():
        torch.testing.assert_close(net(x), bank.plain("c2")(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(names["server"](x), bank.plain("2:4")(x), rtol=1e-4, atol=1e-4)
