"""Measures the slimmed nets that channel runs left beside the whole net again, for runs that had to share their machine:

    python scripts/channel_latency.py runs/structured/iee-channel-*-seed0 > results/structured/channel_latency.json
"""
import json
import subprocess
import sys
from pathlib import Path

import torch

from sparsekern._machine import cpu_name
from sparsekern.deploy.channel_report import FILE, beside, example, load_slim
from sparsekern.sparsity.latency import LatencyTable
from sparsekern.support.models import build_model

ROUNDS = 25


def main() -> None:
    rows = []
    for run in map(Path, sys.argv[1:]):
        report = json.loads((run / "report.json").read_text())
        table = LatencyTable.load(report["config"]["options"]["table"])
        torch.set_num_threads(table.fingerprint["threads"])
        whole = build_model(report["model"]).eval()
        table.check(whole, device="cpu")
        net = load_slim(build_model(report["model"]), run / FILE).eval()
        ms, whole_ms = beside(net, whole, example(table, whole), ROUNDS)
        predicted = report["slim"]["predicted_full_ms"] / report["slim"]["predicted_ms"]
        rows.append({"run": run.name, "measured_ms": ms, "whole_net_ms": whole_ms, "speed_up": whole_ms / ms, "predicted_speed_up": predicted})
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    command = "python scripts/channel_latency.py " + " ".join(f"runs/structured/{Path(run).name}" for run in sys.argv[1:])
    print(json.dumps({"commit": commit, "device": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": ROUNDS,
                      "command": command, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
