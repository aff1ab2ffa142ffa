"""CSR products, sampled products and the sparse layer on a GPU, beside cuSPARSE and dense products in bf16, TF32 and fp32."""
import torch
import torch.nn.functional as F
from gpu_race import Case, Contender, Lab, Overall, Table, Target, agrees, equal

from sparsekern import ops
from sparsekern.ops._register import live_implementation

SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
PRODUCTS = [(4096, 4096, n) for n in (512, 32, 128, 1024, 4096)] + [(1024, 4096, 512), (11008, 4096, 512)]
SAMPLED = [(4096, 4096, n) for n in (512, 128, 2048)]
LAYERS = [(4096, 4096, 256), (4096, 1024, 2048)]                            # out, in, batch
FP32, BF16 = torch.float32, torch.bfloat16
NAMES = {FP32: "fp32", BF16: "bf16", torch.float16: "fp16"}
BYTES_OF_INDEX = 4
ALGORITHMS = {"csr_spmm": ("scalar", "staged", "densify"), "csr_sddmm": ("gather", "dense")}
ALLOWED = "sparsekern, tf32 allowed"                                        # what ours may do where its dense way is the best one


class Matrix:
    """A random sparse matrix in every form that a contender wants."""

    def __init__(self, lab: Lab, rows: int, cols: int, sparsity: float, dtype: torch.dtype):
        self.rows, self.cols = (rows, cols) if not lab.small else (min(rows, 65), min(cols, 96))
        rows, cols = self.rows, self.cols
        self.mask = lab.mask(rows, cols, density=1 - sparsity)
        self.dense = torch.where(self.mask, lab.randn(rows, cols), 0).to(dtype)
        self.crow, self.col = torch.cat([self.mask.new_zeros(1), self.mask.sum(1).cumsum(0)]).int(), self.mask.nonzero()[:, 1].int()
        self.val, self.nnz, self.dtype = self.dense[self.mask], self.col.numel(), dtype
        self.row_order, *self.transposed = ops.csr_plan(self.crow, self.col, rows, cols)
        crow_t, row_t, perm = self.transposed
        self.csr = torch.sparse_csr_tensor(self.crow, self.col, self.val, (rows, cols), check_invariants=False)
        self.csr_t = torch.sparse_csr_tensor(crow_t, row_t, self.val[perm], (cols, rows), check_invariants=False)

    def bytes(self, n: int) -> int:
        """Through device memory, of one product with n columns."""
        return self.nnz * (self.val.itemsize + BYTES_OF_INDEX) + (self.rows + self.cols) * n * self.val.itemsize


def tf32(work, allowed: bool = True):
    """The work with TF32 products allowed or not, and as it was afterwards."""
    def run():
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, allowed
        try:
            return work()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return run


def peers(work, want, dtype: torch.dtype, flops: float) -> dict:
    """The dense product in the peer's best settings."""
    def check(got):
        agrees(got.reshape(want.shape), want, peer=True)
    if dtype != FP32:
        return {f"dense {NAMES[dtype]}": Contender(work, check, flops=flops)}
    return {"dense tf32": Contender(tf32(work), check, flops=2 * flops), "dense fp32": Contender(tf32(work, False), check)}


def torch_csr(work, want) -> Contender:
    return Contender(work, lambda got: agrees(got.reshape(want.shape), want, peer=True))


def each_way(lab: Lab, op: str, dtype: torch.dtype, make, want, **facts) -> dict:
    """Every algorithm by itself, which `auto` chooses among (CUDA kernels only); and with TF32 allowed. `make(**options)` gives run and check."""
    rows = {}
    if live_implementation(op, lab.device.type) == "cuda":
        rows = {f"sparsekern {algo}": Contender(**make(algo=algo), **facts, implementation="cuda") for algo in ALGORITHMS[op]}
    if dtype == FP32:
        one = make()
        rows[ALLOWED] = Contender(tf32(one["run"]), lambda got: agrees(got, want, peer=True), **facts,
                                  implementation=live_implementation(op, lab.device.type))
    return rows


def choice(table: Table) -> list[str]:
    """How well `auto` chose."""
    times = table.medians()
    ways = {name: time for name, time in times.items() if name.split()[-1] in sum(ALGORITHMS.values(), ()) and name.startswith("sparsekern ")}
    if not ways or "sparsekern" not in times:
        return []
    best = min(ways, key=ways.get)
    return [f"auto takes {times['sparsekern'] / ways[best]:.2f}x the time of the best algorithm, {best.split()[-1]}"]


def product(shape: tuple[int, int, int], sparsity: float, dtype: torch.dtype):
    """Forward and transposed in one table, so that they can be held against each other."""
    def build(lab: Lab) -> dict:
        w = Matrix(lab, *shape[:2], sparsity, dtype)
        n = lab.size(shape[2], 24)
        b, tall = lab.randn(w.cols, n, dtype=dtype), lab.randn(w.rows, n, dtype=dtype)
        turned = b.t().contiguous().t()
        want, want_t = w.dense.double() @ b.double(), w.dense.double().t() @ tall.double()
        facts = {"hbm": w.bytes(n), "shared": w.nnz * n * b.itemsize}
        flops = 2 * w.rows * w.cols * n

        def forward(operand, f=ops.csr_spmm, **options):
            return {"run": lambda: f(w.crow, w.col, w.val, operand, w.rows, w.cols, row_order=w.row_order, **options),
                    "check": lambda got: agrees(got, want, w.cols)}

        def backward(f):
            return {"run": lambda: f(*w.transposed, w.val, tall, w.rows, w.cols), "check": lambda got: agrees(got, want_t, w.rows)}

        return (lab.ours("sparsekern", "csr_spmm", lambda f: forward(b, f), **facts)
                | each_way(lab, "csr_spmm", dtype, lambda **options: forward(b, **options), want, **facts)
                | lab.ours("sparsekern transposed", "csr_spmm_t", backward, **facts)
                | lab.ours("sparsekern column-major b", "csr_spmm", lambda f: forward(turned, f), **facts)
                | {"torch CSR": torch_csr(lambda: w.csr @ b, want), "torch CSR transposed": torch_csr(lambda: w.csr_t @ tall, want_t)}
                | peers(lambda: w.dense @ b, want, dtype, flops))
    return build


def sampled(shape: tuple[int, int, int], sparsity: float, dtype: torch.dtype):
    def build(lab: Lab) -> dict:
        w = Matrix(lab, *shape[:2], sparsity, dtype)
        n = lab.size(shape[2], 24)
        a, b = lab.randn(w.rows, n, dtype=dtype), lab.randn(w.cols, n, dtype=dtype)
        tall = [t.t().contiguous().t() for t in (a, b)]
        want, places = (a.double() @ b.double().t())[w.mask], w.mask.view(-1).nonzero()[:, 0]
        facts = {"hbm": w.bytes(n), "shared": w.nnz * n * a.itemsize}

        def make(one, other, f=ops.csr_sddmm, **options):
            return {"run": lambda: f(w.crow, w.col, one, other, **options), "check": lambda got: agrees(got, want, n)}

        sum_at = torch.sparse.sampled_addmm
        return (lab.ours("sparsekern", "csr_sddmm", lambda f: make(a, b, f), **facts)
                | each_way(lab, "csr_sddmm", dtype, lambda **options: make(a, b, **options), want, **facts)
                | lab.ours("sparsekern column-major", "csr_sddmm", lambda f: make(*tall, f), **facts)
                | {"torch sampled_addmm": torch_csr(lambda: sum_at(w.csr, a, b.t(), beta=0.0).values(), want)}
                | peers(lambda: (a @ b.t()).view(-1)[places], want, dtype, 2 * w.rows * w.cols * n))
    return build


def layer(shape: tuple[int, int, int], sparsity: float, dtype: torch.dtype):
    """Forward and backward; every contender gives the gradients of input and weight."""
    def build(lab: Lab) -> dict:
        w = Matrix(lab, *shape[:2], sparsity, dtype)
        batch = lab.size(shape[2], 24)
        x, grad_y = lab.randn(batch, w.cols, dtype=dtype).requires_grad_(), lab.randn(batch, w.rows, dtype=dtype)
        dense = w.dense.clone().requires_grad_()
        want = grad_y.double() @ w.dense.double()

        def make(f):
            val = w.val.clone().requires_grad_()

            def run():
                return torch.autograd.grad(f(x, w.crow, w.col, val, *w.transposed, None, w.rows), (x, val), grad_y)[0]
            return {"run": run, "check": lambda got: agrees(got, want, w.rows)}

        def masked():
            return torch.autograd.grad(F.linear(x, dense * w.mask), (x, dense), grad_y)[0]

        size = w.val.itemsize
        moved = 3 * w.nnz * (size + BYTES_OF_INDEX) + (2 * w.cols + 2 * w.rows) * batch * size
        return (lab.ours("sparsekern", "csr_linear", make, triton=False, hbm=moved, shared=3 * w.nnz * batch * size)
                | {f"masked {name}": one for name, one in peers(masked, want, dtype, 6 * w.rows * w.cols * batch).items()})
    return build


def pattern(lab: Lab) -> dict:
    """Making and changing patterns: CSR from a mask, the plan of the products, validation, 30 % of the connections exchanged."""
    w = Matrix(lab, 4096, 4096, 0.9, FP32)
    rows, cols = w.rows, w.cols
    drop, free = lab.mask(w.nnz, density=0.3), (~w.mask).nonzero()
    count = int(drop.sum())
    chosen = free[torch.randperm(len(free), generator=lab.generator, device=lab.device)[:count]]
    chosen = chosen[(chosen[:, 0] * cols + chosen[:, 1]).argsort()].int()
    grown, take = chosen.t().contiguous(), torch.ones(count, dtype=torch.bool, device=lab.device)
    momentum = lab.randn(w.nnz)
    wanted = ops.implementations("csr_replace")["reference"](w.crow, w.col, [w.val, momentum], drop, *grown, take)

    def replaced(got):
        for one, other in zip((got[0], got[1], *got[2]), (wanted[0], wanted[1], *wanted[2])):
            equal(one, other)

    def composition():
        row = torch.repeat_interleave(torch.arange(rows, device=lab.device), w.crow.diff())
        keys = torch.cat([(row * cols + w.col)[~drop], grown[0].long() * cols + grown[1]])
        order = keys.argsort()
        values = [torch.cat([v[~drop], v.new_zeros(count)])[order] for v in (w.val, momentum)]
        crow = F.pad(torch.bincount(keys // cols, minlength=rows).cumsum(0), (1, 0)).int()
        return crow, (keys[order] % cols).int(), values

    made, planned = (w.crow, w.col, w.val), ops.implementations("csr_plan")["reference"](w.crow, w.col, rows, cols)

    def transposed():
        order = w.col.argsort(stable=True)
        return F.pad(torch.bincount(w.col, minlength=cols).cumsum(0), (1, 0)).int(), order

    return (lab.ours("sparsekern csr_from_mask", "csr_from_mask", lambda f: {
                "run": lambda: f(w.mask, w.dense, nnz=w.nnz), "check": lambda got: [equal(x, y) for x, y in zip(got, made)]},
                hbm=rows * cols + w.nnz * 12)
            | {"torch to_sparse_csr": Contender(w.dense.to_sparse_csr, graph=False, hbm=4 * rows * cols + w.nnz * 12)}
            | lab.ours("sparsekern csr_plan", "csr_plan", lambda f: {
                "run": lambda: f(w.crow, w.col, rows, cols), "check": lambda got: [equal(x, y) for x, y in zip(got, planned)]}, hbm=12 * w.nnz)
            | {"torch argsort, bincount of the columns": Contender(transposed, graph=False, hbm=12 * w.nnz)}
            | lab.ours("sparsekern csr_validate", "csr_validate", lambda f: {
                "run": lambda: f(w.crow, w.col, rows, cols), "check": lambda got: equal(got[:1], torch.zeros_like(got[:1]))}, hbm=4 * w.nnz)
            | lab.ours("sparsekern csr_replace", "csr_replace", lambda f: {
                "run": lambda: f(w.crow, w.col, [w.val, momentum], drop, *grown, take, nnz=w.nnz), "check": replaced}, hbm=25 * w.nnz)
            | {"torch cat, sort, index": Contender(composition, replaced, graph=False)})


def dense_targets(shape: tuple[int, int, int], sparsity: float, dtype: torch.dtype) -> tuple[Target, ...]:
    """The bounds of single cells; "never below 0.95x" stands over the whole grid."""
    found = [Target("sparsekern transposed", "<=", 1.15, "sparsekern"), Target("sparsekern staged", "share", 0.5)]
    if shape == (4096, 4096, 512) and dtype == BF16 and sparsity in (0.98, 0.99):
        found.append(Target("sparsekern", ">=", {0.98: 1.0, 0.99: 1.5}[sparsity], "dense bf16"))
    if shape == (4096, 4096, 512) and dtype == FP32 and sparsity == 0.98:
        found.append(Target("sparsekern", ">=", 1.5, "dense tf32"))
    return tuple(found)


def cases(op: str, shapes: list, build, sparsities=SPARSITIES, targets=lambda *_: ()) -> list[Case]:
    """The first shape at all sparsities in both dtypes before the rest."""
    return [Case(op, f"{'x'.join(map(str, shape))}, {sparsity:.0%} sparse, {NAMES[dtype]}", build(shape, sparsity, dtype),
                 targets=targets(shape, sparsity, dtype), notes=choice, rank=0 if shape == shapes[0] else 1 if sparsity in (0.9, 0.98) else 2)
            for shape in shapes for sparsity in sparsities for dtype in (BF16, FP32)]


CASES = [
    *cases("csr_spmm", PRODUCTS, product, targets=dense_targets),
    *cases("csr_sddmm", SAMPLED, sampled),
    *cases("csr_linear forward and backward", LAYERS, layer, (0.9, 0.95, 0.98)),
    Case("csr_from_mask, csr_plan, csr_validate, csr_replace", "4096x4096, 90% sparse", pattern),
]
OVERALL = [
    Overall("csr_spmm", "fp32", Target("sparsekern", ">=", 2.0, "torch CSR"), "geomean"),
    Overall("csr_spmm", "fp32", Target("sparsekern", ">=", 1.0, "torch CSR")),
    Overall("csr_spmm", "bf16", Target("sparsekern", ">=", 3.0, "torch CSR"), "geomean"),
    Overall("csr_spmm", "bf16", Target("sparsekern", ">=", 0.95, "dense bf16")),
    Overall("csr_spmm", "fp32", Target("sparsekern", ">=", 0.95, "dense fp32")),
    Overall("csr_spmm", "fp32", Target(ALLOWED, ">=", 0.95, "dense tf32")),
    Overall("csr_sddmm", "fp32", Target("sparsekern", ">=", 3.0, "torch sampled_addmm"), "geomean"),
]
