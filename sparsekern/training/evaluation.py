"""What the sub-nets are worth on the test images, and what an algorithm makes of them after its last step on those held out."""
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsekern.training.data import seed_of


@torch.no_grad()
def evaluate(run, name: str, images: Tensor, labels: Tensor, may_stop: bool = True) -> dict:
    """Accuracy and mean loss of one sub-net of a `trainer.Run` on these images; may be interrupted between two batches (`may_stop`)."""
    model, size = run.model, run.config.eval_batch
    correct = torch.zeros((), dtype=torch.int64, device=run.device)
    total_loss = torch.zeros((), dtype=torch.float64, device=run.device)
    was_training = model.training
    with run.sparsifier.subnet(name):
        model.eval()
        try:
            for some, wanted in zip(images.split(size), labels.split(size)):
                with run.autocast():
                    scores = model(run.inputs(some)).float()
                total_loss += nn.functional.cross_entropy(scores, wanted, reduction="sum")
                correct += (scores.argmax(1) == wanted).sum()
                if may_stop:
                    run.stop_if_asked()
        finally:
            model.train(was_training)
    return {"accuracy": correct.item() / len(labels), "loss": total_loss.item() / len(labels)}


def evaluate_all(run, names: list[str], may_stop: bool = True) -> dict[str, dict]:
    """On the test images."""
    data, sparsity = run.data, run.sparsifier.masks.sparsity
    return {name: {**evaluate(run, name, data.test_images, data.test_labels, may_stop), "sparsity": sparsity(name)} for name in names}


def finalize(run) -> None:
    """Let an algorithm choose among its nets after the last step, by their accuracy on the images held out, never on the test images.

    The last row of the history keeps what they were worth on the test images before ("before_finalize") and after it ("subnets"). It may be
    interrupted in the middle; what was chosen until then lies in the algorithm's own state.
    """
    choose, row = getattr(run.sparsifier, "finalize", None), run.history[-1]
    if choose is None or "finalized" in row:
        return
    if "before_finalize" not in row:
        choose(lambda name: evaluate(run, name, *run.held_out)["accuracy"], lambda: _training_inputs(run), run.progress.tick)
        row["before_finalize"] = row["subnets"]
        run.save()
    row.update(finalized=True, subnets=evaluate_all(run, run.subnets))
    run.progress.epoch(row)
    run.save()


def _training_inputs(run) -> Iterator[Tensor]:
    """Normalised training images without augmentation, in the order of the data set, in whole batches (a norm cannot take one image alone)."""
    size = run.config.batch_size
    for index in range(run.per_epoch):
        run.stop_if_asked()
        torch.manual_seed(seed_of("finalize", run.config.seed, index))
        yield run.inputs(run.data.train_images[index * size:(index + 1) * size])
