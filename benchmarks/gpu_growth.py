"""Guided growth on a GPU: activity sums, candidates, and the gradient at them, beside multinomial, unique, isin and dense products."""
import torch
import torch.nn.functional as F
from gpu_csr import ALLOWED, BF16, FP32, NAMES, peers, tf32
from gpu_race import Case, Contender, Lab, Target, agrees, equal

from sparsekern import ops

COMPOSITION, SUMS = "torch multinomial, unique, searchsorted", "torch (a[rows] * b[cols]).sum(1)"


def sparse_pattern(lab: Lab, n: int, sparsity: float):
    """crow, col and the sorted flat positions of a random n x n pattern."""
    flat = torch.randint(n * n, (int((1 - sparsity) * n * n),), generator=lab.generator, device=lab.device).unique()
    crow = F.pad(torch.bincount(flat // n, minlength=n).cumsum(0), (1, 0))
    return crow.int(), (flat % n).int(), flat


def candidates(width: int, sparsity: float, samples: int):
    def build(lab: Lab) -> dict:
        n, count = lab.size(width, 64), lab.size(samples, 200)
        crow, col, active = sparse_pattern(lab, n, sparsity)
        rows, cols, seed = lab.randn(n).abs(), lab.randn(n).abs(), torch.tensor(1, device=lab.device)
        drawn = ops.implementations("sample_product")["reference"](rows, cols, count, seed=seed)
        keys = torch.unique(drawn[0].long() * n + drawn[1])
        wanted = keys[~torch.isin(keys, active)]

        def check(got):
            found = int(got[2])
            equal(got[0][:found].long() * n + got[1][:found], wanted)

        def composition():
            keys = torch.unique(torch.multinomial(rows, count, True) * n + torch.multinomial(cols, count, True))
            place = torch.searchsorted(active, keys).clamp(max=active.numel() - 1)
            keys = keys[active[place] != keys]
            return keys // n, keys % n

        def same(got):
            equal(got[0], drawn[0])
            equal(got[1], drawn[1])

        return (lab.ours("sparsekern", "gse_candidates", lambda f: {"run": lambda: f(rows, cols, crow, col, count, seed=seed), "check": check},
                         hbm=8 * count + 4 * col.numel())
                | lab.ours("sparsekern sample_product alone", "sample_product", lambda f: {
                    "run": lambda: f(rows, cols, count, seed=seed), "check": same}, hbm=8 * count)
                | lab.ours("sparsekern csr_setdiff alone", "csr_setdiff", lambda f: {"run": lambda: f(*drawn, crow, col, n), "check": check},
                           hbm=16 * count + 4 * col.numel())
                | {COMPOSITION: Contender(composition, graph=False),
                   "torch multinomial alone": Contender(lambda: (torch.multinomial(rows, count, True), torch.multinomial(cols, count, True)))})
    return build


def places(samples: int, batch: int, dtype: torch.dtype):
    """The gradient at sampled places of a 4096 x 4096 layer."""
    def build(lab: Lab) -> dict:
        n, count, width = lab.size(4096, 64), lab.size(samples, 200), lab.size(batch, 24)
        a, b = lab.randn(n, width, dtype=dtype), lab.randn(n, width, dtype=dtype)
        flat = torch.randint(n * n, (count,), generator=lab.generator, device=lab.device).sort().values
        rows, cols, number = (flat // n).int(), (flat % n).int(), torch.tensor(count, device=lab.device)
        want = torch.cat([(a[r].double() * b[c].double()).sum(1) for r, c in zip(rows.split(50_000), cols.split(50_000))])
        gathered = 2 * count * width * a.itemsize

        def make(f):
            return {"run": lambda: f(rows, cols, number, a, b), "check": lambda got: agrees(got, want, width)}

        dense = peers(lambda: (a @ b.t()).view(-1)[flat], want, dtype, 2 * n * n * width)
        facts = {"hbm": 12 * count + 2 * n * width * a.itemsize, "shared": gathered / 2}
        allowed = lab.ours(ALLOWED, "coo_sddmm", lambda f: {
            "run": tf32(make(f)["run"]), "check": lambda got: agrees(got, want, peer=True)}, triton=False, **facts)
        return (lab.ours("sparsekern", "coo_sddmm", make, **facts) | (allowed if dtype == FP32 else {})
                | {SUMS: Contender(lambda: (a[rows] * b[cols]).sum(1), lambda got: agrees(got, want, peer=True), l2=gathered)}
                | {f"{name}, indexed": one for name, one in dense.items()})
    return build


def sums(shape: tuple[int, ...], small: tuple[int, ...], window: bool):
    def build(lab: Lab) -> dict:
        x = lab.randn(*(small if lab.small else shape))
        options = {"kernel_size": [3, 3], "padding": [1, 1]} if window else {}
        wide = F.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1) if window else x.double()
        want, seed = wide.abs().sum(0), torch.tensor(7, device=lab.device)
        signed = ops.implementations("activity")["reference"](x.double(), signed=True, seed=seed, **{"kernel_size": [], **options})

        def make(expected, **more):
            return lambda f: {"run": lambda: f(x, **options, **more), "check": lambda got: agrees(got, expected, len(wide), FP32)}

        def composition():
            return (F.unfold(x, 3, padding=1) if window else x[:, :, None]).abs().sum((0, 2))

        return (lab.ours("sparsekern", "activity", make(want), hbm=x.nbytes)
                | lab.ours("sparsekern signed", "activity", make(signed, signed=True, seed=seed), hbm=x.nbytes)
                | {"torch abs, sum": Contender(composition, lambda got: agrees(got, want, peer=True), hbm=x.nbytes)})
    return build


CASES = [
    Case("gse_candidates", "1M samples at 4096x4096, 90% sparse", candidates(4096, 0.9, 1_000_000), rank=0,
         targets=(Target("sparsekern", "us", 120), Target("sparsekern", ">=", 10.0, COMPOSITION))),
    *[Case("coo_sddmm", f"1M places of 4096x4096, batch {batch}, {NAMES[dtype]}", places(1_000_000, batch, dtype), rank=0 if batch == 512 else 1,
           targets=(Target("sparsekern", ">=", 2.0, SUMS), Target(*(("sparsekern", ">=", 0.95, "dense bf16, indexed") if dtype == BF16 else
                                                                (ALLOWED, ">=", 0.95, "dense tf32, indexed")))))
      for batch in (512, 128, 2048) for dtype in (BF16, FP32)],
    Case("activity", "2048x4096", sums((2048, 4096), (50, 37), False)),
    Case("activity", "128x64x32x32, 3x3", sums((128, 64, 32, 32), (3, 4, 9, 7), True)),
    *[Case("gse_candidates", f"{samples:,} samples at {n}x{n}, {sparsity:.0%} sparse", candidates(n, sparsity, samples))
      for n, sparsity, samples in ((1024, 0.9, 105_000), (4096, 0.95, 839_000), (4096, 0.99, 168_000), (16384, 0.99, 2_684_000))],
    *[Case("coo_sddmm", f"168K places of 4096x4096, batch 512, {NAMES[dtype]}", places(168_000, 512, dtype)) for dtype in (BF16, FP32)],
]
