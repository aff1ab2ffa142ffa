"""The kernels as torch ops; each file holds the front door, the schema, the reference and the gradient of its ops."""
from sparsekern.ops._register import implementations, op_names
from sparsekern.ops.activity import activity
from sparsekern.ops.channel_scores import bn_taylor, channel_scores
from sparsekern.ops.csr_edit import check_csr, csr_from_mask, csr_replace, csr_validate
from sparsekern.ops.csr_linear import csr_linear
from sparsekern.ops.csr_sddmm import coo_sddmm, csr_sddmm
from sparsekern.ops.csr_setdiff import csr_setdiff
from sparsekern.ops.csr_spmm import csr_plan, csr_spmm, csr_spmm_t
from sparsekern.ops.knapsack import knapsack
from sparsekern.ops.mask_bits import mask_stats, pack_mask, unpack_mask
from sparsekern.ops.masked_sgd import is_clean, masked_sgd_, packed_sgd_
from sparsekern.ops.masked_weight import masked_weight
from sparsekern.ops.nm_mask import nm_apply_, nm_mask, nm_mask_transposable
from sparsekern.ops.nm_spmm import nm_pack, nm_spmm
from sparsekern.ops.pcgrad_combine import pcgrad_combine, task_gram
from sparsekern.ops.project_conflict import project_conflict_, project_conflict_sgd_
from sparsekern.ops.prune_regrow import prune_regrow_
from sparsekern.ops.sample_product import gse_candidates, sample_product
from sparsekern.ops.sp24 import sp24_backend, sp24_compress, sp24_decompress, sp24_mm
from sparsekern.ops.sparse_conv2d import sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad
from sparsekern.ops.topk_mask import select_threshold, topk_mask

__all__ = ["activity", "bn_taylor", "channel_scores", "check_csr", "coo_sddmm", "csr_from_mask", "csr_linear", "csr_plan", "csr_replace", "csr_sddmm",
           "csr_setdiff", "csr_spmm", "csr_spmm_t", "csr_validate", "gse_candidates", "implementations", "is_clean", "knapsack", "mask_stats",
           "masked_sgd_", "masked_weight", "nm_apply_", "nm_mask", "nm_mask_transposable", "nm_pack", "nm_spmm", "op_names", "pack_mask",
           "packed_sgd_", "pcgrad_combine", "project_conflict_", "project_conflict_sgd_", "prune_regrow_", "sample_product", "select_threshold",
           "sp24_backend", "sp24_compress", "sp24_decompress", "sp24_mm", "sparse_conv2d", "sparse_conv2d_input_grad",
           "sparse_conv2d_weight_grad", "task_gram", "topk_mask", "unpack_mask"]
