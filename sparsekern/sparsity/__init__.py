"""The engine: masks, schedules and optimizer state over time. It knows no algorithm."""
from sparsekern.sparsity.dynamic import Dynamic, DynamicConfig, SparseStart, SparseStartConfig
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.patterns import NM, Pattern, Unstructured
from sparsekern.sparsity.sparsifier import Sparsifier, SparsifierConfig
from sparsekern.sparsity.sparsify import SparsifiedLayer, SparsifyReport, sparsify
from sparsekern.sparsity.sparsify_nm import pack_nm, sparsify_nm
from sparsekern.sparsity.timeline import ALL, FOREVER, Moment, Phase, Timeline, View, rest
from sparsekern.sparsity.update import Correction

__all__ = ["ALL", "FOREVER", "NM", "Correction", "Dynamic", "DynamicConfig", "MaskSet", "Moment", "Pattern", "Phase", "SparseStart",
           "SparseStartConfig", "SparsifiedLayer", "Sparsifier", "SparsifierConfig", "SparsifyReport", "Timeline", "Unstructured", "View",
           "pack_nm", "rest", "sparsify", "sparsify_nm"]
