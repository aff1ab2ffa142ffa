"""The bank of a finished run, and what one file saves beside a file for every sub-net."""
from pathlib import Path

from sparsekern.deploy.bank import SubnetBank
from sparsekern.ops.mask_bits import packed_words

FILE = "bank.safetensors"


def write_bank(run) -> dict:
    """Write `bank.safetensors` with every sub-net of a run that has ended; nothing of the run changes.

    Call it as `on_end` of `training.train`, or within one, before anything that removes the sparsifier (`channel_report` does).

    Args:
        run: at its end: sparsifier, config, data (classes and shape), history, and `out`, the directory to write to.
    Returns:
        {"bank": {"file", "file_bytes", "weights_bytes", "masks_bytes", "norms_bytes", "subnets" (their number), "separate_dense_bytes",
        "separate_masked_bytes"}} for the report. The last two are what a file for every sub-net would take: all as dense state_dicts, and
        all with one bit per weight and only the weights that are kept (headers aside).
    """
    config = run.config
    last = run.history[-1]["subnets"]
    bank = SubnetBank.from_sparsifier(
        run.sparsifier, model={"name": config.model, "classes": run.data.classes, "shape": list(run.data.shape)},
        accuracy={name: last[name]["accuracy"] for name in run.sparsifier.subnets if name in last},
        algorithm=config.algorithm, data=config.data, seed=config.seed, epochs=config.epochs)
    path = bank.save(Path(run.out) / FILE)
    size = bank.size()
    return {"bank": {"file": FILE, "file_bytes": path.stat().st_size, "subnets": len(bank.names()),
                     **{f"{part}_bytes": size[part] for part in ("weights", "masks", "norms")}, **separate(bank)}}


def separate(bank: SubnetBank) -> dict[str, int]:
    """Bytes of a file for every sub-net, headers aside: as dense state_dicts, and as masks with the weights that are kept."""
    whole = bank.size()["weights"]
    masked = 0
    for name in bank.names():
        masked += whole
        for key, mask in bank.bool_masks(name).items():
            if key in bank.weights:
                saved = (mask.numel() - int(mask.sum())) * bank.weights[key].element_size()
                masked += min(0, 4 * packed_words(mask.numel()) - saved)
    return {"separate_dense_bytes": whole * len(bank.names()), "separate_masked_bytes": masked}


def describe(bank: dict) -> str:
    """The figures as one line."""
    return (f"bank: {bank['subnets']} sub-net{'s' if bank['subnets'] > 1 else ''} in {bank['file']}, {bank['file_bytes'] / 1e6:.2f} MB (as separate "
            f"files {bank['separate_dense_bytes'] / 1e6:.2f} MB dense, {bank['separate_masked_bytes'] / 1e6:.2f} MB masked)")
