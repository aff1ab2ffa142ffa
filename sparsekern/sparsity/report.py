"""Numbers about masks for people: exact sparsity, overlap, flips."""
import torch

from sparsekern import ops


def summary(sparsifier) -> list[dict]:
    """A row for each sub-net: exact counts and fractions over the prunable weights, and per layer."""
    s, rows = sparsifier, []
    counted = [layer.counted for layer in s.layers]
    stored = sum(layer.param.numel() for layer in s.layers if layer.counted)         # less than the dense weights where only nonzeros exist
    parameters = sum(param.numel() for param in s.model.parameters()) - stored + s.masks.numel
    for name, pattern in s.patterns.items():
        counts, nnz = s.masks.counts(name), s.masks.nnz(name)
        zeros = s.masks.numel - nnz
        rows.append({"name": name, "pattern": str(pattern), "target_sparsity": pattern.sparsity, "sparsity": s.masks.sparsity(name),
                     "effective_sparsity": s.masks.effective_sparsity(name),
                     "sparsity_of_all_parameters": zeros / parameters, "nnz": nnz, "prunable": s.masks.numel,
                     "left_dense": s.left_dense.get(name, {}),
                     "layers": {layer: {"nnz": count, "numel": numel, "sparsity": 1 - count / numel}
                                for layer, count, numel, shown in zip(s.masks.layers, counts, s.masks.numels, counted) if shown}})
    return rows


def metrics(sparsifier) -> dict:
    """What was measured on the way: the conflict log's shares (with `metrics` on), overlaps of sub-nets, and the events with their flips."""
    s = sparsifier
    result = s.log.summary(s.timeline.length, s.masks.layers) if s.config.metrics else {}
    result["overlap"] = [overlap(s.masks, a, b) for a, b in s.compared()]
    result["events"] = [record | {"flips": int(torch.as_tensor(record["flips"]).sum())} for record in s.history]
    return result


def overlap(masks, a: str, b: str) -> dict:
    """Share of positions that are in one of two masks only, beside the least that their sizes allow."""
    rows = zip(masks.layers, masks.numels, ops.mask_stats(masks[a], masks[b])[:, 3].tolist(), masks.counts(a), masks.counts(b), masks.counted)
    rows = [row for row in rows if row[-1]]
    layers = {layer: {"non_overlap": xor / numel, "least": abs(one - other) / numel} for layer, numel, xor, one, other, _ in rows}
    return {"subnets": [a, b], "non_overlap": sum(row[2] for row in rows) / masks.numel, "least": abs(masks.nnz(a) - masks.nnz(b)) / masks.numel,
            "layers": layers}
