"""The report of a benchmark run: what it counts, how two runs are compared, the page with its plots."""
import copy
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import report  # noqa: E402


def row(name, median, **more):
    return {"name": name, "median_ms": median, "min_ms": median, "p10_ms": 0.9 * median, "p90_ms": 1.1 * median, "rounds": 9, "bytes": 10,
            "gb_per_s": 20.0, "share_of_copy": 0.5, **more}


def on_gpu(name, median, share):
    return row(name, median, implementation="cuda", timed="graph", warm_ms=median / 2, eager_ms=2 * median, host_ms=0.01, floor_ms=share * median,
               bound="memory", share=share)


def target(left, sense, bound, right, measured):
    return {"left": left, "sense": sense, "bound": bound, "right": right, "measured": measured}


@pytest.fixture
def record():
    """Three sparsities of one op on a GPU, one table that was not run, one of a CPU run with a void row."""
    tables = []
    for percent, median in ((80, 2.0), (90, 1.0), (95, 0.5)):
        tables.append({"op": "csr_spmm", "shape": f"64x64x8, {percent}% sparse, fp32", "rows": [
            on_gpu("sparsekern", median, 0.25), on_gpu("torch CSR", 3.0, 0.1), on_gpu("dense tf32", 1.0, 0.9)],
            "targets": [target("sparsekern", ">=", 2.0, "torch CSR", 3.0 / median)],
            "verdicts": [f"{'met' if median < 1.5 else 'MISSED'}: sparsekern >= 2.0x as fast as torch CSR: {3.0 / median:.2f}x"], "notes": []})
    tables.append({"op": "later", "shape": "any", "rows": [], "targets": [], "verdicts": ["not run on a GPU yet: sparsekern <= 66 us"],
                   "notes": ["left out (time)"]})
    tables.append({"op": "masks | bits", "shape": "1K <&>", "rows": [row("sparsekern |a|", 4.0), {"name": "torch", "void": "void: wrong"}],
                   "targets": [], "verdicts": [], "notes": ["met: fewer than 3"]})
    return {"commit": "0123456789abcdef", "dirty": False, "device": "A CPU", "gpu": "NVIDIA H200", "python": "3.12.3",
            "versions": {"torch": "2.11.0"}, "command": "gpu.py bench", "clocks": "345 MHz", "clocks_after": "1980 MHz",
            "yardsticks": {"copy_gb_per_s": 4300.0, "l2_read_gb_per_s": 5500.0, "bf16_tflops": 788.0}, "tables": tables}


def text(record, *more):
    return report.markdown(report.report([record, *more]))


def test_markdown(record):
    said = text(record)
    assert said.startswith("# Ops beside their peers: NVIDIA H200\n")
    assert "`gpu.py bench` at commit 0123456789; torch 2.11.0; Python 3.12.3; clocks before 345 MHz, after 1980 MHz." in said
    assert "copy 4,300 GB/s, reads from L2 5,500 GB/s, bf16 matrix product 788 TFLOP/s" in said
    assert "3 of 4 targets met. Missed:\n\n- csr_spmm, 64x64x8, 80% sparse, fp32: sparsekern >= 2.0x as fast as torch CSR: 1.50x\n" in said
    assert "1 targets not run on a GPU yet:\n\n- later, any: sparsekern <= 66 us\n" in said
    assert "| sparsekern | cuda | 2.0000 | 1.8000 to 2.2000 | 1.0000 | 4.0000 | 20 | 25% (memory) | graph |" in said
    assert "| sparsekern \\|a\\| | 4.000 | 3.60 to 4.40 | 20.0 | 50% |\n| torch | void: wrong |  |  |  |" in said
    assert "- left out (time)" in said


def test_standalone_programs(record):
    record["rows"] = [{"name": "sgd_check --bench", "measured": [{"op": "sgd", "us": 5.5}, {"op": "sgd", "gb_per_s": 4000}]}, {"name": "race"}]
    assert text(record).endswith("## standalone: sgd_check --bench\n\n| op | us | gb_per_s |\n| --- | --- | --- |\n| sgd | 5.5 |  |\n"
                                 "| sgd |  | 4000 |\n")


def test_nothing_missed(record):
    assert "1 of 1 targets met. Missed:\n\n- none" in text(record | {"tables": record["tables"][1:2]})
    assert "Nothing run: cases and targets only." in text({"gpu": None, "torch": "2.15", "tables": []})


@pytest.mark.parametrize("name", ["cpu-ops.json", "cpu-csr.json", "cpu-sparse-layers.json"])
def test_recorded_runs_still_read(name):
    old = json.loads((ROOT / "results" / name).read_text())
    said = text(old)
    assert all(f"## {table['op']}: {table['shape']}\n" in said for table in old["tables"])
    assert f"copy bandwidth {old['copy_gb_per_s']:.1f} GB/s" in said


def test_two_runs(record):
    old, new = record, copy.deepcopy(record)
    new["tables"][0]["rows"][0] |= {"median_ms": 2.6, "p10_ms": 2.5, "p90_ms": 2.7}      # before 1.8 to 2.2
    new["tables"][1]["rows"][0] |= {"median_ms": 0.8, "p10_ms": 0.75, "p90_ms": 0.85}    # before 0.9 to 1.1
    new["tables"][1]["rows"][1] |= {"median_ms": 3.3, "p10_ms": 3.0, "p90_ms": 3.6}      # before 2.7 to 3.3: within the spread
    new["tables"][2]["rows"][0] = {"name": "sparsekern", "void": "wrong result"}
    new["tables"][3]["rows"] = [row("sparsekern", 1.0)]
    new["tables"][4]["rows"] = []
    said = report.markdown(report.compare([new], [old]))
    assert "Slower beyond the spread: 1" in said and "| csr_spmm | 64x64x8, 80% sparse, fp32 | sparsekern | 2.0000 | 2.6000 | 1.30x |" in said
    assert "Faster beyond the spread: 1" in said and "| sparsekern | 1.0000 | 0.8000 | 0.80x |" in said
    assert "- csr_spmm, 64x64x8, 95% sparse, fp32, sparsekern: wrong result" in said
    assert "6 rows within the spread of either run; 1 only now; 2 only before." in said


def test_curves(record):
    assert report.ratios([record]) == {"csr_spmm 64x64x8, fp32": [(80.0, 1.5), (90.0, 3.0), (95.0, 6.0)]}
    assert report.speedups(record) == {"csr_spmm 64x64x8, fp32": [(80.0, 0.5), (90.0, 1.0), (95.0, 2.0)]}
    assert report.shares([record])[-1] == ("masks | bits 1K <&>", 0.5)


def test_page_with_plots(record, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "new.json").write_text(json.dumps(record))
    report.main([str(tmp_path / "new.json"), "--html", str(tmp_path / "sub/page.html")])
    assert capsys.readouterr().out == text(record)
    page = (tmp_path / "sub/page.html").read_text()
    assert page.count("<svg") == 3 == page.count("</svg>") and "Crossover with dense products" in page
    assert "1K &lt;&amp;&gt;" in page and '<span class="missed">MISSED: ' in page and "<script" not in page and "http" not in page.split("<svg")[0]
    report.main([str(tmp_path / "new.json"), "--against", str(tmp_path / "new.json"), "--html", str(tmp_path / "two.html")])
    assert "10 rows within the spread" in capsys.readouterr().out and "<svg" not in (tmp_path / "two.html").read_text()
