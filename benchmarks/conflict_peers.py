"""How conflict projection is written with torch alone: the peers of the races on the CPU and on a GPU. Each returns a call that changes `a`."""
import torch


def cat_version(a, b):
    def run():
        x, y = torch.cat([g.flatten() for g in a]), torch.cat([g.flatten() for g in b])
        d = torch.dot(x, y)
        x.addcmul_(y, -torch.where(d < 0, d / torch.dot(y, y), 0.0))
        torch._foreach_copy_(a, [part.view_as(g) for part, g in zip(x.split([g.numel() for g in a]), a)])
    return run


def foreach_version(a, b):
    def run():
        d = torch.stack([p.sum() for p in torch._foreach_mul(a, b)]).sum()
        q = torch.stack(torch._foreach_norm(b)).square().sum()
        torch._foreach_sub_(a, torch._foreach_mul(b, torch.where(d < 0, d / q, 0.0)))
    return run


def loop_version(a, b):
    def run():
        d = sum((x * y).sum().item() for x, y in zip(a, b))
        if d < 0:
            c = d / sum((y * y).sum().item() for y in b)
            for x, y in zip(a, b):
                x.sub_(y, alpha=c)
    return run
