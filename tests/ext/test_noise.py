"""Keys, generators and the distribution of the noise."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

import rhovae_ext

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def draw(
    backend: str,
    rows: int = 4,
    d: int = 9,
    dtype: torch.dtype = torch.float32,
    key: tuple[int, int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    num_samples: int | None = None,
) -> Tensor:
    mu = torch.zeros(rows, d, dtype=dtype)
    return rhovae_ext.ar1_reparam(
        mu, 1.0, 0.0, key=key, generator=generator, num_samples=num_samples, backend=backend
    )


def test_calls_without_a_key_never_repeat(backend: str) -> None:
    values = torch.cat([draw(backend) for _ in range(20)]).flatten()
    assert len(set(values.tolist())) == values.numel()


def test_manual_seed_reproduces(backend: str) -> None:
    torch.manual_seed(5)
    first = [draw(backend), draw(backend)]
    torch.manual_seed(5)
    again = [draw(backend), draw(backend)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    torch.manual_seed(6)
    assert not torch.equal(first[0], draw(backend))


def test_a_generator_is_used_and_advanced(backend: str) -> None:
    torch.manual_seed(0)
    untouched = torch.get_rng_state()
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    first = draw(backend, generator=generator)
    assert not torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), untouched), "the default generator has no part in it"
    assert not torch.equal(first, draw(backend, generator=generator))
    assert torch.equal(first, draw(backend, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("given", ["key", "eps"])
def test_what_decides_the_noise_leaves_the_generator_alone(backend: str, given: str) -> None:
    mu = torch.zeros(2, 3)
    before = torch.get_rng_state()
    if given == "key":
        rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=(1, 2), backend=backend)
    else:
        rhovae_ext.ar1_reparam(mu, 1.0, 0.5, eps=torch.ones(2, 3), backend=backend)
    assert torch.equal(torch.get_rng_state(), before)


def test_backends_draw_the_same_from_one_seed() -> None:
    if rhovae_ext.available_backends()["native"] is not None:
        pytest.skip("native is not there to compare with")
    torch.manual_seed(1)
    reference = draw("reference")
    torch.manual_seed(1)
    assert float((draw("native") - reference).abs().max()) < 2e-5


def test_a_key_is_a_pair_or_a_tensor(backend: str) -> None:
    for pair in ((0, 0), (2**64 - 1, 2**63), (123, 2**64 - 1)):
        tensor = torch.tensor(pair, dtype=torch.uint64)
        assert torch.equal(draw(backend, key=pair), draw(backend, key=tensor))
        strided = torch.tensor([pair[0], 0, pair[1], 0], dtype=torch.uint64)[::2]
        assert torch.equal(draw(backend, key=pair), draw(backend, key=strided))


def test_every_part_of_the_key_counts(backend: str) -> None:
    keys = [(0, 0), (1, 0), (2**32, 0), (2**63, 0), (0, 1), (0, 2**32), (0, 2**63)]
    draws = [draw(backend, rows=1, d=4, key=key) for key in keys]
    assert len({tuple(z.flatten().tolist()) for z in draws}) == len(keys)


@DTYPES
def test_moments_and_distribution(backend: str, dtype: torch.dtype) -> None:
    count = 1 << 17
    for rows in (8, count // 16):
        z = draw(backend, rows, count // rows, dtype, key=(2024, 1)).double().flatten()
        assert abs(float(z.mean())) < 4 / math.sqrt(count)
        assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / count)
        assert abs(float((z**3).mean())) < 4 * math.sqrt(15 / count)
        assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / count)
        assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@DTYPES
def test_neighbours_are_independent(backend: str, dtype: torch.dtype) -> None:
    rows, d = 512, 64
    z = draw(backend, rows, d, dtype, key=(7, 7), num_samples=4).double()
    limit = 5 / math.sqrt(z.numel())
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((z[..., lag:] * z[..., :-lag]).mean())) < limit, f"steps {lag} apart"
        assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < limit, f"rows {lag} apart"
    assert abs(float((z[1:] * z[:-1]).mean())) < limit, "samples"
    squares = z.square() - 1
    assert abs(float((squares[..., 1::2] * squares[..., 0::2]).mean())) < 4 * limit, "the two of a pair"


@DTYPES
def test_a_chain_has_its_covariance(backend: str, dtype: torch.dtype) -> None:
    s, rho, count = 1.7, -0.8, 60_000
    z = rhovae_ext.ar1_reparam(torch.zeros(count, 5, dtype=dtype), s, rho, key=(1, 0), backend=backend)
    measured = torch.cov(z.double().T)
    steps = torch.arange(5)
    expected = s * s * rho ** (steps[:, None] - steps).abs().double()
    assert float((measured - expected).abs().max()) < 6 * s * s * math.sqrt(2 / count)
