"""The settings of a training run: one flat dataclass, checked when it is made."""
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sparsekern.training.data import DATASETS

#: Settings that say where and how often, not what is computed; a resumed run may change them. The algorithm compares its own.
FREE = frozenset({"out", "resume", "overwrite", "data_dir", "download", "checkpoint_every", "eval_every", "eval_batch", "progress",
                  "device", "threads", "sparsity", "options"})

SCHEDULES = ("cosine", "step", "constant", "cyclic")
CYCLIC = ("lr_cycle_init", "lr_cycle", "lr_restart", "lr_min")


class ConfigError(ValueError):
    """A setting that cannot work; the message names it."""


@dataclass
class TrainConfig:
    """Settings of one run. The algorithm's own settings go into `options`; the comments are the help texts of the command line."""
    algorithm: str = "dense"                        # name of the algorithm, e.g. ast-gc or dense
    out: str = "runs/run"                           # directory of the run: config.yaml, checkpoints, report.json, report.html
    data: str = "digits"                            # digits, cifar10 or cifar100
    data_dir: str | None = None                     # where CIFAR lies
    download: bool = False                          # fetch CIFAR into data_dir through torchvision if it is not there
    subset: int | None = None                       # use only the first so many training images
    holdout: float | None = None                    # share of the training images set aside, the last ones; default: what the algorithm asks for
    augment: bool = True                            # random crop and flip (digits: shifts by at most one pixel)
    model: str = "small_cnn"                        # e.g. mlp:300,100, small_cnn, resnet20, wrn32-ast, torchvision:NAME or timm:NAME
    init_from: str | None = None                    # safetensors file to take the first weights from: a state_dict, or a checkpoint of a run
    sparsity: tuple[float, ...] | None = None       # one sparsity in [0, 1) per sub-net, e.g. 0.9,0.95,0.98; default: the algorithm's
    epochs: int = 20                                # passes over the training images
    batch_size: int = 128                           # images per step; the last, short batch of an epoch is left out
    lr: float = 0.1                                 # peak learning rate
    momentum: float = 0.9                           # of SGD
    nesterov: bool = False                          # Nesterov momentum
    weight_decay: float = 5e-4                      # of SGD
    schedule: str = "cosine"                        # of the learning rate, per step: cosine (to zero), step, constant or cyclic (cosine, restarted)
    warmup_epochs: float = 0.0                      # linear rise of the learning rate before the schedule
    milestones: tuple[float, ...] = (0.5, 0.75)     # shares of the run at which the step schedule multiplies the learning rate by lr_gamma
    lr_gamma: float = 0.1                           # factor of the step schedule
    lr_cycle_init: float | None = None              # cyclic: epochs of the first decay, from lr to lr_min; default: two thirds of the schedule
    lr_cycle: float | None = None                   # cyclic: epochs from one restart to the next; default: a fifteenth of the schedule
    lr_restart: float | None = None                 # cyclic: where a restart begins; default: lr / 10
    lr_min: float | None = None                     # cyclic: where every decay ends; default: lr / 100
    label_smoothing: float = 0.0                    # of the cross-entropy
    max_norm: float | None = None                   # clip the norm of the gradient that is applied
    seed: int = 0                                   # of initialisation, data order and augmentation
    device: str = "auto"                            # auto (CUDA if there is one), cpu, cuda or cuda:N
    threads: int | None = None                      # CPU threads; default: torch's
    channels_last: bool = False                     # keep images and convolutions in channels-last memory order
    precision: str = "fp32"                         # fp32, or bf16 autocast on CUDA
    deterministic: bool = True                      # ask cuDNN for algorithms whose result does not vary from run to run
    eval_every: int = 1                             # epochs between evaluations of every sub-net; the last epoch is always evaluated
    eval_batch: int = 1000                          # images per evaluation batch
    checkpoint_every: int | None = None             # also save every so many steps, not only after each epoch
    resume: bool = False                            # continue the run in `out` from its last checkpoint
    overwrite: bool = False                         # replace the run in `out`
    progress: str = "auto"                          # auto (a bar on a terminal, else lines), rich, plain or none
    options: dict = field(default_factory=dict)     # fields of the algorithm

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, int | float):
            self.sparsity = (float(self.sparsity),)
        self.sparsity = None if self.sparsity is None else tuple(float(value) for value in self.sparsity)
        self.milestones = tuple(float(value) for value in self.milestones)
        self.out = str(self.out)
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError for the first setting that cannot work."""
        _one_of("data", self.data, DATASETS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, ("fp32", "bf16"))
        _one_of("progress", self.progress, ("auto", "rich", "plain", "none"))
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdigit():
            raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {self.device!r}")
        for value in self.sparsity or ():
            if not 0 <= value < 1:
                hint = f"; write {value / 100:g} for {value:g} %" if 1 < value < 100 else ""
                raise ConfigError(f"sparsity: expected shares of zeros in [0, 1), got {value:g}{hint}")
        if self.sparsity == ():
            raise ConfigError("sparsity: expected at least one value, got none")
        for name in ("epochs", "batch_size", "eval_every", "eval_batch", "checkpoint_every", "threads", "subset"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{name}: expected a positive integer, got {value!r}")
        for name, low, below in (("lr", 0, None), ("momentum", 0, 1), ("weight_decay", 0, None), ("warmup_epochs", 0, None),
                                 ("label_smoothing", 0, 1), ("lr_gamma", 0, None)):
            value = getattr(self, name)
            if not (value >= low and value < (float("inf") if below is None else below)):      # also false for NaN
                raise ConfigError(f"{name}: expected a number in [{low}, {'inf' if below is None else below}), got {value!r}")
        for name in CYCLIC:
            value = getattr(self, name)
            if value is not None and self.schedule != "cyclic":
                raise ConfigError(f"{name}: belongs to schedule='cyclic', got {value!r} with schedule={self.schedule!r}")
            if value is not None and not (0 <= value < float("inf") and (value or not name.startswith("lr_cycle"))):
                raise ConfigError(f"{name}: expected a positive number of epochs, got {value!r}" if name.startswith("lr_cycle") else
                                  f"{name}: expected a learning rate of at least 0, got {value!r}")
        if self.schedule == "cyclic" and not self.lowest_lr <= self.restart_lr <= self.lr:
            raise ConfigError(f"lr_restart: expected lr_min <= lr_restart <= lr, got {self.lowest_lr:g}, {self.restart_lr:g} and {self.lr:g}")
        if self.holdout is not None and not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout: expected a share of the training images in [0, 1), got {self.holdout!r}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ConfigError(f"max_norm: expected a positive number, got {self.max_norm!r}")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov: needs momentum above 0")
        if not all(0 < value < 1 for value in self.milestones):
            raise ConfigError(f"milestones: expected shares of the run between 0 and 1, got {list(self.milestones)}")
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs: expected fewer than the {self.epochs} epochs, got {self.warmup_epochs:g}")
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other")

    @property
    def restart_lr(self) -> float:
        """Where a restart of the cyclic schedule begins."""
        return self.lr / 10 if self.lr_restart is None else self.lr_restart

    @property
    def lowest_lr(self) -> float:
        """Where every decay of the cyclic schedule ends."""
        return self.lr / 100 if self.lr_min is None else self.lr_min

    def to_dict(self) -> dict:
        """Plain JSON values, `options` beside the others."""
        return json.loads(json.dumps(asdict(self)))

    def flat(self) -> dict:
        """What config.yaml holds: the algorithm's settings among the others, as the command line takes them."""
        values = self.to_dict()
        options = values.pop("options")
        for name in ("resume", "overwrite"):                # they belong to one start, not to the run
            values.pop(name)
        return {**values, **options}

    def identity(self) -> dict:
        """The settings that decide the result, the algorithm's own aside. Two runs that agree in them are equal bit for bit on one
        machine with one number of threads."""
        return {name: value for name, value in self.to_dict().items() if name not in FREE}


def train_fields() -> dict[str, object]:
    """Name and dataclass field of every setting but `options`."""
    return {f.name: f for f in fields(TrainConfig) if f.name != "options"}


def differences(old: dict, new: dict) -> list[str]:
    """Readable list of the settings in which two identities differ."""
    names = sorted(set(old) | set(new))
    return [f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]


def write_config(path: Path, config: TrainConfig) -> None:
    """config.yaml; as JSON, which is YAML too, where PyYAML is not installed."""
    try:
        import yaml
        text = yaml.safe_dump(config.flat(), sort_keys=False)
    except ImportError:
        text = json.dumps(config.flat(), indent=1) + "\n"
    path.write_text(text)


def _one_of(name: str, value: str, allowed) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
