"""From a trained net to one that runs: what it costs on this machine, measured."""
from sparsekern.deploy.channel_report import channel_report, load_slim
from sparsekern.deploy.latency_table import measure_latency_table

__all__ = ["channel_report", "load_slim", "measure_latency_table"]
