"""Image data sets, held in memory as bytes and read by index batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rhovae.idx import DataError, read_idx
from rhovae.registry import Registry

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` installs."""


@dataclass(frozen=True)
class ImageSet:
    """Grey images as bytes from 0 to ``white``, with their labels."""

    images: Tensor
    """``(n, channels, height, width)``, uint8."""
    labels: Tensor
    """``(n,)``, uint8."""
    white: int = 255

    def __len__(self) -> int:
        return self.images.shape[0]

    def pixels(self, rows: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """The images of these rows scaled to [0, 1]."""
        return scale_pixels(self.images[rows], self.white, dtype)


@dataclass(frozen=True)
class ImageData:
    """A data set with its fixed split."""

    name: str
    train: ImageSet
    test: ImageSet

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[1:])


def scale_pixels(images: Tensor, white: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes from 0 to ``white`` as numbers from 0 to 1."""
    return images.to(dtype) / white


DATASETS: Registry[Callable[[Path | None], ImageData]] = Registry("data set")
"""Loaders ``(folder or None) -> ImageData`` by name."""


@DATASETS.register("digits")
def load_digits(folder: Path | None = None) -> ImageData:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries: 1,437 to train, 360 to test.

    They are used at their own size with their 17 grey levels; the split is stratified and fixed.
    """
    if folder is not None:
        raise DataError("data set 'digits' comes with scikit-learn and reads no folder; leave out --data-dir")
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise DataError("data set 'digits' needs scikit-learn; pip install 'rhovae-ext[train]'") from error
    bundle: Any = datasets.load_digits()
    rows = np.arange(len(bundle.target))
    train, test = model_selection.train_test_split(
        rows, test_size=360, random_state=0, stratify=bundle.target
    )
    images = torch.from_numpy(bundle.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bundle.target.astype(np.uint8))

    def part(index: Any) -> ImageSet:
        chosen = torch.from_numpy(np.sort(index))
        return ImageSet(images[chosen], labels[chosen], white=16)

    return ImageData("digits", part(train), part(test))


@DATASETS.register("fashion-mnist")
def load_fashion_mnist(folder: Path | None = None) -> ImageData:
    """Fashion-MNIST: 60,000 images of 28 x 28 to train, 10,000 to test."""
    help = (
        "Debian and Ubuntu: apt-get install dataset-fashion-mnist; elsewhere download the four files of "
        "github.com/zalandoresearch/fashion-mnist into a folder and give it as --data-dir."
    )
    return _load_idx_folder("fashion-mnist", folder or FASHION_MNIST_DIR, help)


@DATASETS.register("mnist")
def load_mnist(folder: Path | None = None) -> ImageData:
    """MNIST, from a folder that holds its four idx files."""
    help = "Put the four MNIST idx files (gzipped or not) into a folder and give it as --data-dir."
    if folder is None:
        raise DataError(f"data set 'mnist' needs a folder. {help}")
    return _load_idx_folder("mnist", folder, help)


def load_dataset(name: str, folder: str | Path | None = None) -> ImageData:
    """The data set registered as ``name``.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
        DataError: a file is missing, truncated or not what its name says; the message says how to get it.
    """
    try:
        path = None if folder is None else Path(folder).expanduser()
    except RuntimeError as error:  # the ~ of somebody who is not known here
        raise DataError(f"{folder} is no folder: {error}") from error
    return DATASETS[name](path)


def _load_idx_folder(name: str, folder: Path, help: str) -> ImageData:
    train = _load_idx_pair(folder, "train", help)
    test = _load_idx_pair(folder, "t10k", help)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{folder}: training images are {tuple(train.images.shape[2:])} pixels, "
            f"test images {tuple(test.images.shape[2:])}: files of two data sets. {help}"
        )
    return ImageData(name, train, test)


def _load_idx_pair(folder: Path, part: str, help: str) -> ImageSet:
    image_path = folder / f"{part}-images-idx3-ubyte"
    label_path = folder / f"{part}-labels-idx1-ubyte"
    images = read_idx(image_path, 3, help)
    labels = read_idx(label_path, 1, help)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {image_path.name} holds {len(images)} images but {label_path.name} {len(labels)} "
            f"labels. {help}"
        )
    if images.size == 0:
        raise DataError(f"{image_path} holds no pixels. {help}")
    return ImageSet(torch.from_numpy(images)[:, None], torch.from_numpy(labels))


class ImageBatch(NamedTuple):
    """One process's part of a global batch."""

    images: Tensor
    """``(rows, channels, height, width)``, uint8; may be empty."""
    row_offset: int
    """Where these rows begin in the global batch."""
    global_size: int
    """Rows of the global batch."""


class Rows(NamedTuple):
    """Indices of one process's part of a global batch."""

    indices: Tensor
    row_offset: int
    global_size: int


class BatchSampler(Sampler[Rows]):
    """One global order of the data per epoch, cut into batches and each batch split over the processes.

    The order is a function of ``(seed, epoch)`` alone, so a run can begin at any step, on any number of
    processes, and see the batches that it would have seen.

    Args:
        size: number of images.
        batch_size: rows of a global batch; the last of an epoch may be smaller.
        seed: of the order; ``None`` keeps the data's own order.
        first_step: global step to begin at; its epoch begins in the middle.
        rank, world_size: which part of each batch this process takes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int | None,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_epoch, self.first_batch = divmod(first_step, len(self))
        self.epoch = self.first_epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch (Lightning calls it)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Rows]:
        order = torch.arange(self.size, device="cpu")
        if self.seed is not None:
            # SeedSequence keeps neighbouring seeds and epochs unrelated
            mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed[0]) >> 1)
            order = torch.randperm(self.size, generator=generator, device="cpu")
        first = self.first_batch if self.epoch == self.first_epoch else 0
        for batch in range(first, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            begin = len(rows) * self.rank // self.world_size
            end = len(rows) * (self.rank + 1) // self.world_size
            yield Rows(rows[begin:end], begin, len(rows))


class _RowsOf(Dataset[ImageBatch]):
    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, rows: Rows) -> ImageBatch:
        return ImageBatch(self.images.images[rows.indices], rows.row_offset, rows.global_size)


def _as_is(batch: ImageBatch) -> ImageBatch:
    return batch


def batch_loader(images: ImageSet, sampler: BatchSampler) -> DataLoader[ImageBatch]:
    """A loader that fetches each batch by one indexing operation."""
    # a generator of its own keeps the loader from drawing on torch's default one
    return DataLoader(
        _RowsOf(images),
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_is,  # type: ignore[arg-type]
        generator=torch.Generator(),
    )
