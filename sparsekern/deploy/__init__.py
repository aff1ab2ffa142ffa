"""From a trained net to one that runs: what it costs on this machine, measured.

A bank is every sub-net of a training in one file:
    bank            SubnetBank, the front door; bank_of_run writes it at the end of a run
    bank_file       the file, and every check before it is believed; bank_masks: nested masks in few bits; bank_active: a bank on a model
A deployed net is one sub-net as a plain module:
    compact         makes it; layer_forms: the forms a layer can take; dead_channels: what can be cut; fold: batch norms; deployment: its report
    deployed_file   as our file; export: as ONNX and torch.export
What it costs:
    timing          how two nets are timed beside each other
    bank_report     measures a bank; bank_measure: what is measured; bank_figures: the table, read, checked and asked (fit); bank_page: as HTML
    latency_table   a model's layers at every width; latency_plan: which nets tell them; channel_report: the slimmed net of a channel run
"""
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
