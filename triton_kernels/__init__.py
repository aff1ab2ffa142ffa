"""Triton kernels: one file per op, each with its `@triton.jit` kernels and one launcher of the op's own signature.

Every module lists what `scripts/check_triton_aot.py` compiles ahead of time, as a table of plain dictionaries:

    AOT = [
        dict(kernel=pack_mask_kernel,                      # the @triton.jit function; its name ends in _kernel
             name="pack_mask",                             # optional: tells the rows of one kernel apart in the report
             signature={"mask": "*u8", "bits": "*i32", "numel": "i64", "BLOCK": "constexpr"},    # every parameter
             constexprs={"BLOCK": 1024},                   # values of the parameters marked "constexpr"
             num_warps=4,                                  # optional, 4; num_stages likewise (3)
             attrs={(0,): [["tt.divisibility", 16]]}),     # optional: what a launch would specialise on, by parameter position
    ]

Each kernel of a module (a jit function whose name ends in `_kernel`) has at least one row.
"""
