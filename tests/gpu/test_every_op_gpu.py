"""Every CUDA op is captured in a graph, waits for nothing, and follows the current stream and device. On the inputs of `sparsekern doctor`."""
import pytest
import torch

from sparsekern import doctor, ops
from sparsekern._native import native

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
NAMES = [name for name in ops.op_names() if not name.startswith("sparse_conv2d")]        # the reference serves these
CUDA = torch.device("cuda")


def call(name):
    """(op, arguments, options on the GPU); the reference's result on the CPU's copies."""
    arguments, options = doctor.MAKERS[name](torch.Generator().manual_seed(0))
    if name == "csr_from_mask":                                         # reads the number of nonzeros unless it is given
        options["nnz"] = int(arguments[0].sum())
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.sparsekern, packet), overload or "default")
    return op, doctor._to(arguments, CUDA), doctor._to(options, CUDA)


def want(name):
    return doctor._run(ops.implementations(name)["reference"], name, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_waits_for_nothing(name):
    op, arguments, options = call(name)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        returned = op(*arguments, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert doctor._compare([t.cpu() for t in doctor._tensors([returned, arguments, options])][:1], want(name)[:1]) == ""


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_is_captured_and_replayed(name):
    op, arguments, options = call(name)
    warm, (_, fresh, fresh_options) = torch.cuda.Stream(), call(name)
    with torch.cuda.stream(warm):
        op(*fresh, **fresh_options)                                     # loads modules, asks for device properties
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = op(*arguments, **options)
    graph.replay()                                                      # capture itself ran nothing
    torch.cuda.synchronize()
    assert doctor._compare([t.cpu() for t in doctor._tensors([returned, arguments, options])], want(name)) == ""


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_follows_the_current_stream(name):
    op, arguments, options = call(name)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)                                   # about 10 ms: work on another stream would overtake the copies below
        late, late_options = doctor._to(doctor._to(arguments, torch.device("cpu")), CUDA), options
        returned = op(*late, **late_options)
        got = [t.cpu() for t in doctor._tensors([returned, late, late_options])]
    assert doctor._compare(got, want(name)) == ""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_runs_on_the_device_of_its_tensors(name):
    op, arguments, options = call(name)
    second = torch.device("cuda:1")
    arguments, options = doctor._to(arguments, second), doctor._to(options, second)
    returned = op(*arguments, **options)                                # while cuda:0 is the current device
    assert doctor._compare([t.cpu() for t in doctor._tensors([returned, arguments, options])], want(name)) == ""
