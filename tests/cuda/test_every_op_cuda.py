"""Every op's CUDA binding on the inputs of `sparsekern doctor`: the reference's result, whatever order the threads run in."""
import pytest
import torch

from sparsekern import doctor, ops

# What CUDA leaves to the reference, each for a reason told in the op's docstring or in the README.
REFERENCE_ONLY = {"sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad"}
# Python that puts library calls and ops of CUDA C++ together.
COMPOSED = {"sp24_mm"}
NAMES = sorted(set(ops.op_names()) - REFERENCE_ONLY - COMPOSED)


def test_every_other_op_has_cuda_kernels(lane):
    assert [name for name in NAMES if not lane.has(name)] == []
    assert not any(lane.has(name) for name in REFERENCE_ONLY)


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference_in_any_order_of_threads(lane, name):
    want = doctor._run(ops.implementations(name)["reference"], name, torch.device("cpu"))
    runs = []
    for seed in (0, 1, 12345) if lane.emulated else (0, 0):
        lane.shuffle(seed)
        try:
            runs.append([tensor.cpu() for tensor in doctor._run(lane.op(name), name, lane.device)])
        finally:
            lane.shuffle(0)
        assert doctor._compare(runs[-1], want) == ""
    for other in runs[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(other, runs[0])), "the order of threads shows in the result"
