"""Data sets: reading, refusing, and batches."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rhovae.data import (
    FASHION_MNIST_DIR,
    BatchSampler,
    ImageSet,
    Rows,
    batch_loader,
    load_dataset,
    load_fashion_mnist,
)
from rhovae.idx import DataError, read_idx


def idx(array: np.ndarray) -> bytes:
    """The format by its description: two zero bytes, type 8 (unsigned byte), number of axes, sizes, data."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_folder(folder: Path, *, gz: bool, train: int = 20, test: int = 7) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = generator.integers(0, 10, count, dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = idx(array)
        path = folder / (name + ".gz" if gz else name)
        path.write_bytes(gzip.compress(content) if gz else content)
    return arrays


@pytest.mark.parametrize("gz", [False, True])
def test_folder_of_idx_files(tmp_path: Path, gz: bool) -> None:
    arrays = write_folder(tmp_path, gz=gz)
    data = load_dataset("mnist", tmp_path)
    assert data.image_shape == (1, 5, 4)
    np.testing.assert_array_equal(data.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])
    pixels = data.test.pixels(slice(0, 3), torch.float64)
    np.testing.assert_allclose(pixels[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"][:3] / 255, rtol=1e-15)


def test_plain_and_gzipped_mixed(tmp_path: Path) -> None:
    arrays = write_folder(tmp_path, gz=True)
    name = "train-images-idx3-ubyte"
    (tmp_path / f"{name}.gz").unlink()
    (tmp_path / name).write_bytes(idx(arrays[name]))
    assert len(load_dataset("mnist", tmp_path).train) == 20


def test_missing_file_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    write_folder(tmp_path, gz=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is missing .*--data-dir"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(DataError, match=r"train-images.*missing.*apt-get install dataset-fashion-mnist"):
        load_dataset("fashion-mnist", tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs a folder"):
        load_dataset("mnist")
    with pytest.raises(DataError, match="reads no folder"):
        load_dataset("digits", tmp_path)


@pytest.mark.parametrize("gz", [False, True])
def test_truncated_file(tmp_path: Path, gz: bool) -> None:
    write_folder(tmp_path, gz=gz)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{path.name}.*truncated or damaged.*data-dir"):
        load_dataset("mnist", tmp_path)


def test_corrupt_gzip(tmp_path: Path) -> None:
    write_folder(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=path.name):
        load_dataset("mnist", tmp_path)


def test_labels_where_images_are_expected(tmp_path: Path) -> None:
    write_folder(tmp_path, gz=False)
    labels = (tmp_path / "train-labels-idx1-ubyte").read_bytes()
    images = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(labels)
    with pytest.raises(DataError, match=r"train-images.*not an idx file of images.*it holds labels"):
        load_dataset("mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(images)
    with pytest.raises(DataError, match=r"train-labels.*not an idx file of labels.*it holds images"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00", b"<html>not found</html>", b"\x00\x00\x0d\x03" + bytes(12)]
)
def test_wrong_magic(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, gz=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images.*expected it to begin with 00 00 08 03"):
        load_dataset("mnist", tmp_path)


def test_header_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x00\x00\x08\x03\x00\x00")
    with pytest.raises(DataError, match="ends inside its header"):
        read_idx(path, 3, "Get it.")


def test_counts_that_disagree(tmp_path: Path) -> None:
    write_folder(tmp_path, gz=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match=r"train-images\S+ holds 20 images but train-labels\S+ 19 labels"):
        load_dataset("mnist", tmp_path)


def test_files_of_two_data_sets(tmp_path: Path) -> None:
    write_folder(tmp_path, gz=False)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((7, 6, 4), np.uint8)))
    with pytest.raises(DataError, match="files of two data sets"):
        load_dataset("mnist", tmp_path)


def test_digits_split_is_fixed_and_stratified() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.test), data.image_shape) == (1437, 360, (1, 8, 8))
    counts = data.test.labels.bincount()
    assert counts.max() - counts.min() <= 2
    assert torch.equal(data.test.images, load_dataset("digits").test.images)
    pixels = data.train.pixels(slice(None))
    assert (pixels.min().item(), pixels.max().item()) == (0.0, 1.0)


@pytest.mark.skipif(not FASHION_MNIST_DIR.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_debian_package() -> None:
    data = load_fashion_mnist()
    assert (len(data.train), len(data.test), data.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.test.labels.bincount().tolist() == [1000] * 10


def rows(sampler: BatchSampler) -> list[Rows]:
    return list(sampler)


def test_every_image_once_an_epoch_in_a_new_order() -> None:
    sampler = BatchSampler(23, 5, seed=1)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = rows(sampler)
        assert [len(b.indices) for b in batches] == [5, 5, 5, 5, 3]
        orders.append(torch.cat([b.indices for b in batches]))
        assert orders[-1].sort().values.tolist() == list(range(23))
    assert not torch.equal(*orders)
    assert not torch.equal(orders[0], torch.cat([b.indices for b in BatchSampler(23, 5, seed=2)]))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_one_order(world: int) -> None:
    whole = rows(BatchSampler(23, 5, seed=1))
    parts = [rows(BatchSampler(23, 5, seed=1, rank=r, world_size=world)) for r in range(world)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert torch.equal(torch.cat([p.indices for p in pieces]), batch.indices)
        offset = 0
        for piece in pieces:
            assert (piece.row_offset, piece.global_size) == (offset, len(batch.indices))
            offset += len(piece.indices)


def test_beginning_at_any_step() -> None:
    sampler = BatchSampler(23, 5, seed=1)
    sampler.set_epoch(2)
    whole = rows(sampler)
    resumed = BatchSampler(23, 5, seed=1, first_step=13)
    resumed.set_epoch(2)
    assert [b.indices.tolist() for b in resumed] == [b.indices.tolist() for b in whole[3:]]
    resumed.set_epoch(3)
    assert len(rows(resumed)) == 5


def test_loader_leaves_the_default_generator_alone() -> None:
    images = ImageSet(
        torch.arange(23, dtype=torch.uint8)[:, None, None, None], torch.zeros(23, dtype=torch.uint8)
    )
    state = torch.get_rng_state()
    loader = batch_loader(images, BatchSampler(23, 5, seed=None))
    assert len(loader) == 5
    assert torch.cat([batch.images.flatten() for batch in loader]).tolist() == list(range(23))
    assert torch.equal(torch.get_rng_state(), state)
