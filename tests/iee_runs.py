"""Short runs of IEE on a small net, and all that a step may move: for its tests."""
import torch
from dynamic_runs import make

from sparsekern.sparsity.optim_state import shaped_state

STEPS = {"h_steps": 3, "j_steps": 2, "q_steps": 4}          # 9 steps a cycle, 5 cycles before step 45 of 60


def run(optimizer="sgd", **fields):
    return make("iee", optimizer, **STEPS | fields)


def bits(net, optimizer, sparsifier):
    """Copies of everything that a step may move: weights and their state, other parameters and theirs, buffers."""
    prunable = {id(w) for w in sparsifier.weights}
    others = [p for p in net.parameters() if id(p) not in prunable]
    def states(params):
        return [{k: torch.as_tensor(v).clone() for k, v in optimizer.state.get(p, {}).items()} for p in params]
    return {"weights": [w.detach().clone() for w in sparsifier.weights], "shaped": [
        {k: v.clone() for k, v in shaped_state(optimizer, w).items()} for w in sparsifier.weights],
        "others": [p.detach().clone() for p in others], "states": states(others), "buffers": [b.clone() for b in net.buffers()],
        "mask": [m.clone() for m in sparsifier.masks[sparsifier.net]]}
