"""From a trained net to one that runs: what it costs on this machine, measured."""
from sparsekern.deploy.bank import Subnet, SubnetBank
from sparsekern.deploy.bank_file import BankError
from sparsekern.deploy.bank_of_run import write_bank
from sparsekern.deploy.bank_report import report_bank
from sparsekern.deploy.channel_report import channel_report, load_slim
from sparsekern.deploy.compact import compact
from sparsekern.deploy.deployed_file import load_deployed, save_deployed
from sparsekern.deploy.deployment import Deployment, LayerForm
from sparsekern.deploy.export import densify, export_onnx, export_program
from sparsekern.deploy.latency_table import measure_latency_table

__all__ = ["BankError", "Deployment", "LayerForm", "Subnet", "SubnetBank", "channel_report", "compact", "densify", "export_onnx", "export_program",
           "load_deployed", "load_slim", "measure_latency_table", "report_bank", "save_deployed", "write_bank"]
