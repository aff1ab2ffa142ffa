"""The ready-made loop: data, models, training with checkpoints, and the report."""
from sparsekern.support.models import build_model, model_names
from sparsekern.training.checkpoint import CheckpointError
from sparsekern.training.config import ConfigError, TrainConfig
from sparsekern.training.data import DataError, load_dataset
from sparsekern.training.trainer import Interrupted, TrainingError, train

__all__ = ["CheckpointError", "ConfigError", "DataError", "Interrupted", "TrainConfig", "TrainingError", "build_model", "load_dataset",
           "model_names", "train"]
