"""From a trained net to one that runs: what it costs on this machine, measured."""
from sparsekern.deploy.channel_report import channel_report, load_slim
from sparsekern.deploy.deployed_file import load_deployed, save_deployed
from sparsekern.deploy.export import densify, export_onnx, export_program
from sparsekern.deploy.latency_table import measure_latency_table

__all__ = ["channel_report", "densify", "export_onnx", "export_program", "load_deployed", "load_slim", "measure_latency_table", "save_deployed"]
