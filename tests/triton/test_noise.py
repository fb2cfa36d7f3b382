"""The words bit for bit, and the normals against float64."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import rhovae_ext
from rhovae_ext import reference
from tests.ext.compare import NOISE_TOLERANCE
from tests.triton.conftest import DEVICE

Answers = list[tuple[list[int], list[int], list[int]]]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _words(seed: Tensor, position: Tensor, row: Tensor) -> list[list[int]]:
    """The kernel's words for 64-bit patterns in int64."""
    from tests.triton.kernels import write_words

    out = torch.empty(len(row), 4, dtype=torch.int64, device=DEVICE)
    write_words[(len(row),)](*(x.to(DEVICE) for x in (seed, position, row)), out)
    return out.tolist()


def test_published_words(philox_answers: Answers) -> None:
    def pattern(low: int, high: int) -> int:
        return _signed(low | high << 32)

    seeds = torch.tensor([pattern(*key) for _, key, _ in philox_answers])
    positions = torch.tensor([pattern(*counter[:2]) for counter, _, _ in philox_answers])
    rows = torch.tensor([pattern(*counter[2:]) for counter, _, _ in philox_answers])
    assert _words(seeds, positions, rows) == [words for _, _, words in philox_answers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_normals(dtype: torch.dtype) -> None:
    """Keys and rows that carry from one word into the next; rows of one tile and of several chunks."""
    arithmetic = torch.float32 if dtype == torch.bfloat16 else dtype
    for seed, offset, row, d in (
        (0, 0, 0, 5),
        (42, 2**64 - 2, 2**32 - 1, 13),
        (2**64 - 1, 2**32 - 1, 2**64 - 2, 37),
    ):
        key = torch.tensor([seed, offset], dtype=torch.uint64)
        rows = torch.tensor([_signed((row + k) % 2**64) for k in range(3)])
        expected = reference.normals(key, rows, d, arithmetic).double()
        mu = torch.zeros(3, d, dtype=dtype, device=DEVICE)
        eps = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=(seed, offset), row_offset=row, backend="triton")
        tolerance = 2.0**-7 if dtype == torch.bfloat16 else NOISE_TOLERANCE[arithmetic]
        assert float((eps.cpu().double() - expected).abs().max()) <= tolerance


def test_uniforms_next_to_both_ends() -> None:
    """Where the logarithm is weakest: u1 next to 1 and next to 0, at angles all round."""
    from tests.triton.kernels import write_pairs

    ends = torch.tensor(
        [0, 1, 7, 2**32 - 1, 2**32 - 2, 2**32 - 700, 2**32 - 50_000, 2**32 - 1_300_000, 2**31]
    )
    turns = torch.arange(0, 2**32, 2**27)
    first, second = (x.flatten() for x in torch.meshgrid(ends, turns, indexing="ij"))
    out = torch.empty(len(first), 2, device=DEVICE)
    patterns = (x.to(torch.int32).to(DEVICE) for x in (first, second))
    write_pairs[(1,)](*patterns, out, len(first), 512)
    u1, u2 = ((x.double() + 0.5) * 2.0**-32 for x in (first, second))
    radius, angle = torch.sqrt(-2 * torch.log(u1)), 2 * torch.pi * u2
    expected = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1)
    error = (out.cpu().double() - expected).abs().amax(-1)
    assert float(error[u1 < 1 - 1e-5].max()) < NOISE_TOLERANCE[torch.float32]
    assert float(error.max()) < 1e-4


def test_samples_count_as_rows() -> None:
    mu = torch.zeros(2, 6, device=DEVICE)
    draw = partial(rhovae_ext.ar1_reparam, s=1.0, rho=0.5, key=(3, 1), backend="triton")
    samples, rows = draw(mu, num_samples=3, row_offset=2), draw(mu.new_zeros(6, 6), row_offset=6)
    assert torch.equal(samples, rows.reshape(2, 3, 6).transpose(0, 1))


@pytest.mark.parametrize("d", [3, 6, 37])
def test_batch_splits(d: int) -> None:
    """Bit for bit, in one tile and in chunks."""
    generator = torch.Generator().manual_seed(0)
    mu, rho = (torch.rand(5, width, generator=generator).to(DEVICE) for width in (d, d - 1))

    def draw(start: int, stop: int) -> Tensor:
        return rhovae_ext.ar1_reparam(
            mu[start:stop], 0.7, rho[start:stop], key=(8, 9), row_offset=2**32 - 2 + start, backend="triton"
        )

    whole = draw(0, 5)
    for cuts in ((0, 2, 5), tuple(range(6))):
        assert torch.equal(torch.cat([draw(*cut) for cut in pairwise(cuts)]), whole)


def test_keys_from_the_generator() -> None:
    mu = torch.zeros(2, 5, device=DEVICE)
    torch.manual_seed(5)
    draws = [rhovae_ext.ar1_reparam(mu, 1.0, 0.5, backend="triton") for _ in range(2)]
    assert not torch.equal(*draws)
    torch.manual_seed(5)
    assert torch.equal(rhovae_ext.ar1_reparam(mu, 1.0, 0.5, backend="triton"), draws[0])
    key = torch.tensor([3, 4], dtype=torch.uint64)
    pair = rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=(3, 4), backend="triton")
    for same in (key, key.to(DEVICE), torch.stack((key, key), -1).to(DEVICE)[:, 0]):
        assert torch.equal(rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=same, backend="triton"), pair)
