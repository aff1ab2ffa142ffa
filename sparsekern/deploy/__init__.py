"""From a trained net to one that runs: what it costs on this machine, measured."""
from sparsekern.deploy.latency_table import measure_latency_table

__all__ = ["measure_latency_table"]
