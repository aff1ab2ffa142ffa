"""Whole training steps on a GPU: AST-GC on a ResNet-50 beside dense SGD, batch 64, bf16 autocast, channels-last, steps without a mask event."""
import torch
from gpu_race import Case, Contender, Lab, Target
from torch.nn import functional as F

import sparsekern
from sparsekern.support.models import build_model

SPARSITY = (0.9, 0.95, 0.98)


def whole_step(lab: Lab) -> dict:
    name, side = ("resnet20", 32) if lab.small else ("torchvision:resnet50", 224)
    torch.backends.cudnn.benchmark = lab.device.type == "cuda"
    classes, batch = lab.size(1000, 10), lab.size(64, 4)
    images = lab.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), generator=lab.generator, device=lab.device)

    def contender(attach, implementation="torch", **options) -> Contender:
        model = build_model(name, classes=classes, shape=(3, side, side)).to(lab.device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, **options)
        sparsifier = attach(model, optimizer)

        def step():
            with torch.autocast(lab.device.type, dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            (sparsifier or optimizer).step()
            optimizer.zero_grad()
            return loss.detach()

        def check(loss):
            assert bool(torch.isfinite(loss)), f"the loss is {float(loss)}"

        return Contender(step, check, implementation=implementation, graph=False)

    def ast_gc(**options):
        return lambda model, optimizer: sparsekern.AST_GC(model, optimizer, sparsity=SPARSITY, total_steps=10**6, initial_sparsity=SPARSITY[0],
                                                          **options)

    # The default of torch is foreach; fused is its best setting.
    return {"sparsekern AST-GC": contender(ast_gc(), "sparsekern"), "sparsekern AST, no correction": contender(ast_gc(gc=False), "sparsekern"),
            "dense SGD": contender(lambda *_: None), "dense SGD, fused": contender(lambda *_: None, fused=True)}


CASES = [Case("training step", "ResNet-50, batch 64, bf16 autocast, channels-last", whole_step,
              targets=(Target("sparsekern AST-GC", "<=", 1.05, "dense SGD"),))]
