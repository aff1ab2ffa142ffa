"""From a trained net to one that runs: what it costs on this machine, measured."""
from sparsekern.deploy.channel_report import channel_report, load_slim
from sparsekern.deploy.compact import compact
from sparsekern.deploy.deployment import Deployment, LayerForm
from sparsekern.deploy.latency_table import measure_latency_table

__all__ = ["Deployment", "LayerForm", "channel_report", "compact", "load_slim", "measure_latency_table"]
