"""Data sets as one uint8 tensor on the device, with crop and flip done there for a whole batch at once.

The order of the images and every augmentation draw is a function of (seed, epoch) and the position in the epoch, so a run can
resume at any step without a stored random state, and CPU and GPU see the same batches.
"""
import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparsekern.training.cifar import DataError, read_cifar

__all__ = ["DATASETS", "Batches", "DataError", "Dataset", "hold_out", "load_dataset", "seed_of"]

DATASETS = ("digits", "cifar10", "cifar100")
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True)
class Dataset:
    """Images [n, channels, height, width] uint8 and labels [n] int64, with what normalising and augmenting them needs."""
    name: str
    classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]                # of pixel / 255, per channel
    std: tuple[float, ...]
    pad: int                               # black pixels on each side before the random crop
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return tuple(self.train_images.shape[1:])

    def to(self, device: torch.device) -> "Dataset":
        moved = {name: getattr(self, name).to(device) for name in ("train_images", "train_labels", "test_images", "test_labels")}
        return Dataset(**{**self.__dict__, **moved})

    def normalise(self, images: Tensor) -> Tensor:
        """float32 images with mean 0 and deviation 1 per channel; black becomes -mean / std."""
        scale = images.new_tensor([1 / (255 * s) for s in self.std], dtype=torch.float32).view(-1, 1, 1)
        shift = images.new_tensor([-m / s for m, s in zip(self.mean, self.std)], dtype=torch.float32).view(-1, 1, 1)
        return torch.addcmul(shift, images.to(torch.float32), scale)


def seed_of(*counters: object) -> int:
    """A 63-bit seed that depends on every counter; equal on all machines."""
    digest = hashlib.blake2b("/".join(map(str, counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Batches:
    """Training batches by (epoch, index). The draws of an epoch are made once, on the host, and moved once to the device."""

    def __init__(self, data: Dataset, batch_size: int, seed: int, augment: bool = True):
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.images = len(data.train_labels)
        self.pad = data.pad if augment else 0
        self.flip = data.flip and augment
        if batch_size > self.images:
            raise ValueError(f"batch_size: expected at most the {self.images} training images, got {batch_size}")
        self.per_epoch = self.images // batch_size         # the last, short batch of an epoch is left out
        self._epoch = None

    def _draw(self, epoch: int) -> None:
        device = self.data.train_images.device
        draw = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        used = self.per_epoch * self.batch_size
        self._order = torch.randperm(self.images, generator=draw)[:used].to(device)
        draw.manual_seed(seed_of("augment", self.seed, epoch))
        self._top, self._left = torch.randint(0, 2 * self.pad + 1, (2, used), generator=draw).to(device)
        self._flipped = torch.randint(0, 2, (used,), generator=draw).bool().to(device)
        self._epoch = epoch

    def at(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """The batch `index` of `epoch`: normalised float32 images and int64 labels on the device of the data."""
        if epoch != self._epoch:
            self._draw(epoch)
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        chosen = self._order[part]
        images = self.data.train_images[chosen]
        if self.pad or self.flip:
            images = crop_flip(images, self._top[part], self._left[part], self._flipped[part] if self.flip else None, self.pad)
        return self.data.normalise(images), self.data.train_labels[chosen]


def hold_out(data: Dataset, share: float, batch_size: int) -> tuple[Dataset, tuple[Tensor, Tensor] | None]:
    """Set the last `share` of the training images aside: (the data without them, (images, labels) of those), None for a share of 0.

    They are neither trained on nor augmented. Sparse Cocktail on CIFAR-10 trains on 42,750 images and chooses on 2,250, the last 5 % of the
    first 45,000: `subset` 45000 with a hold-out of 0.05. Without a subset it is 47,500 and 2,500.

    Raises:
        ValueError: fewer images than a batch would be held out, or left to train on.
    """
    if not share:
        return data, None
    images = len(data.train_labels)
    held = math.floor(share * images + 0.5)
    if held < batch_size:
        raise ValueError(f"holdout: {share:g} of {images} training images are {held}, expected at least one batch of {batch_size}; "
                         f"raise holdout or lower batch_size")
    if images - held < batch_size:
        raise ValueError(f"holdout: {share:g} of {images} training images leaves {images - held} to train on, expected at least one batch of "
                         f"{batch_size}; lower holdout or batch_size")
    kept = replace(data, train_images=data.train_images[:-held], train_labels=data.train_labels[:-held])
    return kept, (data.train_images[-held:], data.train_labels[-held:])


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor | None, pad: int) -> Tensor:
    """Each image's window at (top, left) of the image padded with `pad` black pixels, mirrored where `flipped`."""
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    across = torch.arange(width, device=images.device).expand(count, width)
    if flipped is not None:
        across = torch.where(flipped[:, None], width - 1 - across, across)
    rows = top[:, None] + torch.arange(height, device=images.device)                         # [count, height]
    columns = left[:, None] + across                                                         # [count, width]
    where = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]                       # [count, height, width] into one plane
    where = where.view(count, 1, -1).expand(count, channels, -1)
    return padded.flatten(2).gather(2, where).view(count, channels, height, width)


def load_dataset(name: str, directory: str | None = None, *, download: bool = False, subset: int | None = None) -> Dataset:
    """Read a data set into memory.

    Args:
        name: digits (comes with scikit-learn), cifar10 or cifar100.
        directory: where CIFAR lies, in its binary or its python layout.
        download: fetch CIFAR through torchvision if it is not there.
        subset: keep only the first `subset` training images (of digits: of the fixed training split).
    Raises:
        DataError: what is missing or damaged, and what to put where.
    """
    if name not in DATASETS:
        raise ValueError(f"data: expected one of {', '.join(DATASETS)}, got {name!r}")
    if name == "digits":
        train, test, (mean, std) = *_digits(), (None, None)
        pixels = train[0].astype(np.float64) / 255
        mean, std = (float(pixels.mean()),), (float(pixels.std()),)
        classes, pad, flip = 10, 1, False                  # a mirrored digit is another sign; one pixel is an eighth of the image
    else:
        train, test = read_cifar(name, directory, download)
        mean, std = STATISTICS[name]
        classes, pad, flip = (10 if name == "cifar10" else 100), 4, True
    images, labels = train
    if subset is not None:
        if not 0 < subset <= len(labels):
            raise ValueError(f"subset: expected 1 to {len(labels)} training images of {name}, got {subset}")
        images, labels = images[:subset], labels[:subset]
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (images, labels, *test)]
    return Dataset(name, classes, tensors[0], tensors[1].long(), tensors[2], tensors[3].long(), mean, std, pad, flip)


def _digits():
    """scikit-learn's 1,797 real 8x8 digits; of every class, a fixed fifth is the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn, or choose --data cifar10") from error
    bunch = load_digits()
    images = np.round(bunch.images[:, None] * (255 / 16)).astype(np.uint8)          # grey levels 0 to 16
    labels = bunch.target.astype(np.int64)
    draw = np.random.Generator(np.random.PCG64(0))
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = draw.permutation(np.flatnonzero(labels == digit))
        test[members[:round(len(members) / 5)]] = True
    mixed = draw.permutation(np.flatnonzero(~test))                                 # so that a subset holds every class
    return (images[mixed], labels[mixed]), (images[test], labels[test])
