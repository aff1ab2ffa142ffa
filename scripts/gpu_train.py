"""One short CIFAR-10 run of ResNet-20 through the Python API, its result as a line of JSON. Run by the stage train of scripts/gpu.py:

    python scripts/gpu_train.py '{"algorithm": "ast-gc", "data_dir": "data", "epochs": 6, "sparsity": [0.9, 0.95, 0.98]}'
"""
import json
import sys
import tempfile

from sparsekern.training.config import TrainConfig
from sparsekern.training.trainer import train


def main() -> None:
    settings = {"data": "cifar10", "model": "resnet20", "batch_size": 128, "channels_last": True, "progress": "plain", "eval_every": 100}
    settings |= json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        report = train(TrainConfig(**settings, out=folder))
    last = report["history"][-1]
    accuracy = {name: round(subnet["accuracy"], 4) for name, subnet in last["subnets"].items()}
    words = ", ".join(f"{name}: {value:.1%}" for name, value in accuracy.items())
    print(json.dumps({"algorithm": settings["algorithm"], "epochs": settings["epochs"], "accuracy": accuracy,
                      "sparsity": {name: subnet["sparsity"] for name, subnet in last["subnets"].items()}, "steps": last["step"],
                      "seconds": round(last["seconds"], 1), "words": f"accuracy {words}"}))


if __name__ == "__main__":
    main()
