"""sparsekern latency-table: what every layer of a model costs on this machine at every width."""
import sys

from sparsekern.cli.usage import Parser, running


def run(arguments: list[str]) -> int:
    parser = Parser("latency-table", "Measure what every layer of a model costs on this machine at every width.")
    parser.add_argument("--model", required=True, help="as in train, e.g. resnet20, wrn-22-2 or torchvision:NAME")
    parser.add_argument("--out", required=True, help="the table, a JSON file")
    parser.add_argument("--data", help="take image shape and classes from digits, cifar10 or cifar100")
    parser.add_argument("--shape", default="3,32,32", help="channels,height,width of an image (default: %(default)s)")
    for name, kind, default, text in (
            ("classes", int, 10, "of the model"), ("batch", int, 128, "images at a time"), ("step", int, 8, "channels between measured widths"),
            ("points", int, 8, "at most so many widths of each group of channels"), ("repeats", int, 3, "inferences each time a net comes up"),
            ("rounds", int, 3, "at least so many rounds"), ("max-rounds", int, 12, "at most so many rounds"),
            ("spread", float, 0.02, "rounds are added until nets are known to this share of their latency"),
            ("threads", int, None, "CPU threads; default: torch's"), ("device", str, "cpu", "cpu, cuda or cuda:N"),
            ("backend", str, "own", "who follows coupled channels: own, or torch-pruning for models that own refuses"),
            ("progress", str, "auto", "auto, rich, plain or none")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    for name, text in (("channels-last", "keep images and convolutions in channels-last memory order"),
                       ("resume", "go on with a measurement that was stopped"), ("overwrite", "replace the table there is")):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    try:
        given = parser.parse_args(arguments)
    except SystemExit as done:                             # --help prints and leaves
        return int(done.code or 0)
    return _measure(given)


def _measure(given) -> int:
    import torch

    from sparsekern.deploy import measure_latency_table
    from sparsekern.support.models import build_model
    shapes = {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
    try:
        with running("latency-table", given.threads):
            if given.data is not None and given.data not in shapes:
                raise ValueError(f"data: expected one of {', '.join(shapes)}, got {given.data!r}")
            shape, classes = shapes[given.data] if given.data else (_shape(given.shape), given.classes)
            if given.device.startswith("cuda") and not torch.cuda.is_available():
                raise ValueError("device: torch finds no CUDA device; use --device cpu")
            model = build_model(given.model, classes=classes, shape=shape)
            model.to(given.device, memory_format=torch.channels_last if given.channels_last else torch.contiguous_format)
            names = ("device", "step", "points", "repeats", "rounds", "max_rounds", "spread", "resume", "overwrite", "progress", "backend")
            table = measure_latency_table(model, shape, given.batch, given.out, **{name: getattr(given, name) for name in names})
    except KeyboardInterrupt:
        print("sparsekern: stopped; go on with the same command and --resume", file=sys.stderr)
        return 130
    known = table.measured
    print(f"{given.model}, batch {given.batch}: {table.full_ms:.2f} ms, smallest net {table.smallest_ms:.2f} ms; {known['rounds']} rounds of "
          f"{known['nets']} nets" + ("" if known["spread"] is None else f", known to {known['spread']:.1%}"))
    print(f"wrote {given.out}")
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"shape: expected channels,height,width such as 3,32,32, got {text!r}")
    return tuple(map(int, parts))
