"""The directory of a run: config.yaml, checkpoints, an algorithm's own files in stages, report.json and report.html."""
import importlib.util
from pathlib import Path

from sparsekern.training.checkpoint import checkpoint_files
from sparsekern.training.config import ConfigError, TrainConfig

STAGES = "stages"                          # where an algorithm keeps files of its own


def prepare_directory(config: TrainConfig) -> None:
    """Make `out`, refuse one that holds another run, and clear ours from it with overwrite."""
    if importlib.util.find_spec("safetensors") is None:
        raise ConfigError("checkpoints need safetensors: pip install 'sparsekern[train]'")
    out = Path(config.out)
    held = [out / name for name in ("config.yaml", "report.json", "report.html") if (out / name).exists()]
    held += checkpoint_files(out / "checkpoints") + sorted((out / STAGES).glob("*.safetensors*"))
    if held and not (config.resume or config.overwrite):
        raise ConfigError(f"out: {out} already holds a run ({held[0].name}); add --resume to go on with it, --overwrite to replace it, or "
                          f"choose another --out")
    if config.overwrite:
        for path in held:
            path.unlink()
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: cannot make {out}: {error}") from error
