"""Measures the slimmed nets that channel runs left beside the whole net again, for runs that had to share their machine. On a quiet one:

    python scripts/channel_latency.py runs/structured/iee-channel-*-seed0 > results/structured/channel_latency.json

Reads report.json and slim.safetensors of each run, and the run's latency table at the path its report names, so from the repository's root.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch

from sparsekern._machine import cpu_name
from sparsekern.deploy.channel_report import FILE, example, load_slim, measure
from sparsekern.sparsity.latency import LatencyTable
from sparsekern.support.models import build_model

ROUNDS = 40


def main() -> None:
    rows = []
    for run in map(Path, sys.argv[1:]):
        report = json.loads((run / "report.json").read_text())
        table = LatencyTable.load(report["config"]["options"]["table"])
        torch.set_num_threads(table.fingerprint["threads"])
        whole = build_model(report["model"]).eval()
        table.check(whole, device="cpu")
        net = load_slim(build_model(report["model"]), run / FILE).eval()
        rows.append({"run": run.name, **measure(net, whole, example(table, whole), ROUNDS),
                     "predicted_speedup": report["slim"]["predicted_full_ms"] / report["slim"]["predicted_ms"]})
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    command = "python scripts/channel_latency.py " + " ".join(f"runs/structured/{Path(run).name}" for run in sys.argv[1:])
    print(json.dumps({"commit": commit, "device": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": ROUNDS,
                      "command": command, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
