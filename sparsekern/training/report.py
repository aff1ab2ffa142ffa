"""report.json: everything a run produced, in one finite JSON document. The page for people is made from it by `html.py`."""
import json
import sys
import time
from pathlib import Path

import torch

from sparsekern.support.provenance import commit, device_info, finite, uncommitted, versions
from sparsekern.training.html import render
from sparsekern.training.plots import pattern_accuracy

SCHEMA = 1


def build(run) -> dict:
    """The report of a finished run (a `trainer.Run`)."""
    last, before = run.history[-1]["subnets"], run.history[-1].get("before_finalize")
    subnets = [{**row, "accuracy": last[row["name"]]["accuracy"], "loss": last[row["name"]]["loss"],
                "forward_flops": run.forward_flops(row["name"])} for row in run.sparsifier.summary()]
    for row in subnets if before else ():
        row |= {"accuracy_before": before[row["name"]]["accuracy"], "accuracy_of_stage": own_stage(run.stages, row["name"])}
    config, metrics = run.config, run.sparsifier.metrics()
    for formula in metrics.get("training_flops", {}).values():
        formula["per_sample"] = formula["sparse"] * subnets[0]["forward_flops"] + formula["dense"] * sum(run.dense_flops.values())
    for kind, multiples in metrics.get("training_flops_by_subnet", {}).items():         # of each sub-net's forward pass, in the mean of all steps
        per_sample = sum(multiple * run.forward_flops(name) for name, multiple in multiples.items())
        metrics.setdefault("training_flops", {})[kind] = {"per_sample": per_sample}
    return finite({
        "schema": SCHEMA, "algorithm": config.algorithm, "data": config.data, "model": config.model, "seed": config.seed,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "epochs": config.epochs, "steps": run.step, "steps_per_epoch": run.per_epoch, "train_images": len(run.data.train_labels),
        "holdout_images": len(run.held_out[1]) if run.held_out else 0, "test_images": len(run.data.test_labels),
        "wall_seconds": run.elapsed(), "device": device_info(run.device),
        "versions": versions(), "commit": commit(), "uncommitted_changes": uncommitted(), "config": config.to_dict(),
        "prunable": run.prunable, "parameters": run.parameters,
        "subnets": subnets, "mean_accuracy": sum(s["accuracy"] for s in subnets) / len(subnets),
        "pattern_accuracy": pattern_accuracy(subnets),
        "training_flops": run.flops.total, "training_flops_per_sample": run.flops.per_sample,
        "dense_forward_flops": sum(run.dense_flops.values()),
        "dense_training_flops": 3 * sum(run.dense_flops.values()) * run.flops.samples,
        "memory": memory(run), "metrics": metrics, "history": run.history, "stages": run.stages,
    })


def own_stage(stages: list[dict], name: str) -> float | None:
    """Test accuracy of a sub-net at the end of the last stage that trained it, with the weights of that stage."""
    return next((stage["subnets"][name]["accuracy"] for stage in reversed(stages) if name in stage["subnets"]), None)


def write(report: dict, directory: Path) -> None:
    """report.json and report.html; the JSON is complete on disk before it gets its name."""
    directory = Path(directory)
    for name, text in (("report.json", json.dumps(report, indent=1, allow_nan=False) + "\n"), ("report.html", render(report))):
        partial = directory / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(directory / name)


def rerender(directory: Path) -> Path:
    """Make report.html again from report.json."""
    path = Path(directory) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist; it is written when a run ends (an interrupted one goes on with "
                                f"--resume)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    target = path.with_name("report.html")
    target.write_text(render(report), encoding="utf-8")
    return target


def memory(run) -> dict[str, int]:
    """Bytes between two steps: the model's parameters, its buffers (topology of sparse layers among them), masks and the optimizer's state;
    and the peak of the process (of the device's allocator on CUDA) since it started."""
    def size(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    masks = run.sparsifier.masks
    found = {"parameters": size(run.model.parameters()), "buffers": size(run.model.buffers()),
             "masks": size(mask for name in masks.names for mask in masks.active(name) if mask is not None),
             "optimizer": size(value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))}
    if run.device.type == "cuda":
        return found | {"peak": torch.cuda.max_memory_allocated(run.device)}
    try:
        import resource
    except ImportError:                                             # not on Windows
        return found
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
