"""What `compact` made of a net, layer by layer and as a whole, beside the dense net."""
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class LayerForm:
    """One Linear or Conv2d of the dense net, and what runs in its place. Times are median milliseconds of a forward pass, None: not measured."""
    name: str
    shape: tuple[int, ...]                  # of the dense weight
    nnz: int                                # weights that the layer holds now, its zeros too where it is dense
    form: str                               # "dense", "slim", "csr", "packed" or "sp24"
    dense_ms: float | None
    ms: float | None                        # of the form that runs
    reason: str


@dataclass(frozen=True)
class Deployment:
    """The report of `compact`. `str()` of it is a table, `to_dict()` is what JSON takes.

    Latencies are median milliseconds of a batch, measured in turn: `dense_latency_ms` of the dense net as it came, `dense_best_ms` of the
    quickest dense net: that one, or it in the memory orders and with the folding that were open to the deployed net. Bytes are those of all
    parameters and buffers, unsaved ones too; FLOPs are of one sample, 2 per multiply-add of convolutions and linear layers (None: not
    counted, a note says why).
    """
    pattern: str
    device: str
    dtype: str
    batch: int
    threads: int
    layers: tuple[LayerForm, ...]
    folded: tuple[str, ...]                 # batch norms that are now part of the layer before them
    left: Mapping[str, str]                 # {batch norm: why it was not folded}
    notes: tuple[str, ...]
    latency_ms: float
    dense_latency_ms: float
    dense_best_ms: float
    bytes: int
    dense_bytes: int
    flops: float | None
    dense_flops: float | None
    difference: float                       # largest one between the outputs of both nets, as a share of the largest output
    memory_format: str                      # of the convolutions' weights: "contiguous", "channels_last" or "mixed"

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense net that came in."""
        return self.dense_latency_ms / self.latency_ms

    @property
    def speedup_best(self) -> float:
        """How many times as fast as the quickest dense net: what the zeros alone gain."""
        return self.dense_best_ms / self.latency_ms

    def __iter__(self) -> Iterator[LayerForm]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerForm:
        return next(layer for layer in self.layers if layer.name == name)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [f"{'layer':{width}}  {'shape':>18}  {'nnz':>9}  form    dense ms        ms  why"]
        for layer in self.layers:
            times = [f"{ms:.3f}" if ms is not None else "-" for ms in (layer.dense_ms, layer.ms)]
            lines.append(f"{layer.name:{width}}  {'x'.join(map(str, layer.shape)):>18}  {layer.nnz:>9}  {layer.form:6}  {times[0]:>8}  "
                         f"{times[1]:>8}  {layer.reason}")
        lines.append(f"{self.pattern} on {self.device}, {self.dtype}, batch {self.batch}, {self.threads} thread{'s' * (self.threads != 1)}: "
                     f"{self.latency_ms:.3f} ms, dense {self.dense_latency_ms:.3f} ms ({self.speedup:.2f}x), at its best "
                     f"{self.dense_best_ms:.3f} ms ({self.speedup_best:.2f}x); {self.memory_format}")
        flops = "not counted" if self.flops is None else f"{self.flops / 1e6:.2f} of {self.dense_flops / 1e6:.2f} M"
        lines.append(f"{self.bytes / 1e6:.3f} of {self.dense_bytes / 1e6:.3f} MB; FLOPs {flops}; outputs differ by {self.difference:.1e}")
        if self.folded:
            lines.append(f"folded: {', '.join(self.folded)}")
        return "\n".join([*lines, *(f"not folded: {name}: {why}" for name, why in self.left.items()), *self.notes])

    def to_dict(self) -> dict:
        return asdict(self) | {"speedup": self.speedup, "speedup_best": self.speedup_best, "left": dict(self.left), "notes": list(self.notes),
                               "folded": list(self.folded), "layers": [asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers]}
