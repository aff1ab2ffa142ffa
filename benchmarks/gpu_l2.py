"""How fast L2 can be read: the yardstick for kernels that gather from it."""
import torch
import triton
import triton.language as tl


@triton.jit
def read_again_kernel(source, out, blocks, passes, BLOCK: tl.constexpr):
    """Reads the whole source `passes` times, each program every num_programs-th block; the offset moves, so no load can be hoisted."""
    program = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for turn in range(passes):
        for block in range(program, blocks, tl.num_programs(0)):
            start = ((block + turn) % blocks).to(tl.int64) * BLOCK
            total += tl.load(source + start + place, cache_modifier=".cg")      # past L1
    tl.store(out + program, tl.sum(total, axis=0))


def read_again(source: torch.Tensor, out: torch.Tensor, passes: int, block: int = 4096) -> None:
    """Reads all of `source` `passes` times by out.numel() programs."""
    read_again_kernel[(out.numel(),)](source, out, source.numel() // block, passes, BLOCK=block, num_warps=8)
