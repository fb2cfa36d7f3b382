"""KL divergences against dense multivariate normals in float64, with every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Gamma,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    kl_divergence,
)

from rhovae.distributions import AR1Normal, kl_per_dim
from tests.distributions.chains import BATCH, KINDS, assert_same_with_gradients, both
from tests.ext import dense

SIZES = [1, 2, 7]


def diagonal(d: int) -> tuple[Independent[Normal], MultivariateNormal, list[Tensor]]:
    generator = torch.Generator().manual_seed(8)
    loc = torch.randn(*BATCH, d, generator=generator, dtype=torch.float64).requires_grad_()
    scale = torch.rand(*BATCH, d, generator=generator, dtype=torch.float64).add(0.3).requires_grad_()
    p = Independent(Normal(loc, scale), 1)
    return p, MultivariateNormal(loc, covariance_matrix=torch.diag_embed(scale.square())), [loc, scale]


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_to_standard_normal(kind: tuple[str, str], d: int) -> None:
    q, dense_q, leaves = both(kind, d)
    p = Independent(Normal(torch.zeros(d).double(), torch.ones(d).double()), 1)
    truth = kl_divergence(dense_q, dense.standard(torch.zeros(d).double()))
    assert truth.shape == BATCH
    assert_same_with_gradients(kl_divergence(q, p), truth, leaves)
    assert_same_with_gradients(q.rsample_kl()[1], truth, leaves)
    for terms in (kl_per_dim(q), kl_per_dim(q, p)):
        assert terms.shape == (*BATCH, d)
        assert_same_with_gradients(terms.sum(-1), truth, leaves)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_diagonal_both_ways(kind: tuple[str, str], d: int) -> None:
    q, dense_q, leaves = both(kind, d)
    p, dense_p, more = diagonal(d)
    leaves = leaves + more
    for a, b, truth in (
        (q, p, kl_divergence(dense_q, dense_p)),
        (p, q, kl_divergence(dense_p, dense_q)),
    ):
        assert_same_with_gradients(kl_divergence(a, b), truth, leaves)
        assert kl_per_dim(a, b).shape == (*BATCH, d)
        assert_same_with_gradients(kl_per_dim(a, b).sum(-1), truth, leaves)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("other", KINDS, ids="-".join)
def test_two_chains(other: tuple[str, str], kind: tuple[str, str], d: int) -> None:
    q, dense_q, leaves = both(kind, d, seed=1)
    p, dense_p, more = both(other, d, seed=2)
    leaves = leaves + more
    truth = kl_divergence(dense_q, dense_p)
    assert_same_with_gradients(kl_divergence(q, p), truth, leaves)
    assert_same_with_gradients(kl_per_dim(q, p).sum(-1), truth, leaves)
    # the terms are those of the chain rule: the first k of them are the KL of the first k steps
    first = kl_divergence(q.marginal(range(d // 2 + 1)), p.marginal(range(d // 2 + 1)))
    torch.testing.assert_close(kl_per_dim(q, p)[..., : d // 2 + 1].sum(-1), first)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_multivariate_normal_both_ways(kind: tuple[str, str], d: int) -> None:
    q, dense_q, leaves = both(kind, d)
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(*BATCH, d, d, generator=generator, dtype=torch.float64)
    covariance = (factor @ factor.mT + torch.eye(d).double()).requires_grad_()
    loc = torch.randn(d, generator=generator, dtype=torch.float64).requires_grad_()
    p = MultivariateNormal(loc, covariance)
    leaves = [*leaves, loc, covariance]
    assert_same_with_gradients(kl_divergence(q, p), kl_divergence(dense_q, p), leaves)
    assert_same_with_gradients(kl_divergence(p, q), kl_divergence(p, dense_q), leaves)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_low_rank_normal_both_ways(kind: tuple[str, str], d: int) -> None:
    q, dense_q, leaves = both(kind, d)
    generator = torch.Generator().manual_seed(3)
    shapes = ((d,), (BATCH[-1], d, 2), (d,))
    loc, factor, diagonal = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    more = [x.requires_grad_() for x in (loc, factor, 0.3 + diagonal.square())]
    p = LowRankMultivariateNormal(more[0], more[1], more[2])
    dense_p = MultivariateNormal(more[0], more[1] @ more[1].mT + torch.diag_embed(more[2]))
    leaves = [*leaves, *more]
    assert_same_with_gradients(kl_divergence(q, p), kl_divergence(dense_q, dense_p), leaves)
    assert_same_with_gradients(kl_divergence(p, q), kl_divergence(dense_p, dense_q), leaves)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("channels", [1, 2])
def test_independent_around_both(channels: int, kind: tuple[str, str]) -> None:
    """The last axes of the batch are events as well: sums of the KL over them."""
    d = 5
    q, dense_q, leaves = both(kind, d, seed=1)
    chain, dense_chain, other = both(("step", "row"), d, seed=2)
    plain, dense_plain, more = diagonal(d)
    factor = torch.randn(d, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    low = LowRankMultivariateNormal(torch.zeros(d).double(), factor, torch.ones(d).double())
    dense_low = MultivariateNormal(low.loc, low.covariance_matrix)
    rows = Independent(q, channels)
    axes = tuple(range(-channels, 0))
    for p, dense_p, theirs in (
        (Independent(chain, channels), dense_chain, other),
        (Independent(plain, channels), dense_plain, more),
        (Independent(plain.base_dist, 1 + channels), dense_plain, more),
        (Independent(low.expand(BATCH), channels), dense_low, []),
    ):
        for a, b, truth in (
            (rows, p, kl_divergence(dense_q, dense_p)),
            (p, rows, kl_divergence(dense_p, dense_q)),
        ):
            assert kl_divergence(a, b).shape == BATCH[: 2 - channels]
            assert_same_with_gradients(kl_divergence(a, b), truth.sum(axes), [*leaves, *theirs])


def test_torch_s_own_pairs_of_independent_are_what_they_were() -> None:
    a, b = (Normal(torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.5) for _ in range(2))
    for n in (0, 1, 2):
        truth = kl_divergence(a, b).sum(tuple(range(-n, 0))) if n else kl_divergence(a, b)
        torch.testing.assert_close(kl_divergence(Independent(a, n), Independent(b, n)), truth)
    with pytest.raises(NotImplementedError):
        kl_divergence(Independent(a, 1), Independent(b, 2))


def test_monte_carlo() -> None:
    q, _, _ = both(("step", "step"), 5, seed=1)
    p, _, _ = both(("row", "row"), 5, seed=2)
    z = q.sample((50_000,))
    ratio = q.log_prob(z) - p.log_prob(z)
    assert ((ratio.mean(0) - kl_divergence(q, p)).abs() < 5 * ratio.std(0) / 50_000**0.5).all()


@pytest.mark.parametrize(("q_batch", "p_batch"), [((), (3,)), ((3,), ()), ((5, 1), (3,)), ((3,), (5, 1))])
def test_batch_shapes_broadcast(q_batch: tuple[int, ...], p_batch: tuple[int, ...]) -> None:
    d = 3  # as long as one of the batch axes
    expected = torch.broadcast_shapes(q_batch, p_batch)
    q = AR1Normal(torch.randn(*q_batch, d), torch.rand(*q_batch, 1) + 0.5, torch.rand(*q_batch, 1))
    chain = AR1Normal(torch.randn(*p_batch, d), torch.rand(*p_batch, 1) + 0.5, torch.rand(*p_batch, 1))
    plain = Independent(Normal(torch.randn(*p_batch, d), torch.rand(*p_batch, d) + 0.5), 1)
    for p in (chain, plain, chain.multivariate_normal()):
        dense_p = p if isinstance(p, MultivariateNormal) else MultivariateNormal(p.mean, _covariance(p))
        for a, b, truth in (
            (q, p, kl_divergence(q.multivariate_normal(), dense_p)),
            (p, q, kl_divergence(dense_p, q.multivariate_normal())),
        ):
            kl = kl_divergence(a, b)
            assert kl.shape == expected
            torch.testing.assert_close(kl, truth, rtol=1e-4, atol=1e-4)


def _covariance(p: AR1Normal | Independent[Normal]) -> Tensor:
    return p.covariance_matrix if isinstance(p, AR1Normal) else torch.diag_embed(p.variance)


def test_a_chain_is_nothing_away_from_itself() -> None:
    logits = torch.linspace(-9, 9, 41)
    q = AR1Normal.from_logits(torch.randn(42), torch.randn(42), logits)
    assert kl_divergence(q, q).abs() < 1e-4
    assert kl_per_dim(q, q).min() > -1e-5


@pytest.mark.parametrize(("a", "b"), [(41.0, 41.0), (45.0, 44.0), (300.0, 299.0), (-300.0, -300.5)])
def test_chains_that_hardly_move(a: float, b: float) -> None:
    """1 - rho^2 = 1/cosh(a)^2 rounds to 0; the KL of two such chains of one scale does not."""
    q, p = (AR1Normal.from_logits(torch.zeros(2), 0.0, logit) for logit in (a, b))
    gain = abs(a) - abs(b)
    truth = 0.5 * (math.exp(-2 * gain) - 1) + gain
    assert kl_divergence(q, p).item() == pytest.approx(truth, rel=1e-5)


def test_close_chains_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    a = 3 + torch.rand(50, generator=generator)
    loc, log_scale = torch.randn(51, generator=generator), 0.1 * torch.randn(51, generator=generator)
    q, p = AR1Normal.from_logits(loc, log_scale, a), AR1Normal.from_logits(loc + 0.01, log_scale, a + 0.1)
    q64 = AR1Normal.from_logits(loc.double(), log_scale.double(), a.double())
    p64 = AR1Normal.from_logits((loc + 0.01).double(), log_scale.double(), (a + 0.1).double())
    truth = kl_divergence(q64, p64)
    torch.testing.assert_close(kl_divergence(q, p).double(), truth, rtol=1e-3, atol=1e-4)


def test_what_has_no_terms_is_said() -> None:
    q = AR1Normal(torch.zeros(2, 5), 1.0, 0.5)
    gamma = Independent(Gamma(torch.ones(5), torch.ones(5)), 1)
    with pytest.raises(NotImplementedError, match=r"Independent\(Normal, 1\), AR1Normal"):
        kl_divergence(q, gamma)
    with pytest.raises(NotImplementedError, match="not per dimension"):
        kl_per_dim(q, q.multivariate_normal())  # type: ignore[arg-type]
    others: list[Distribution] = [
        Independent(Normal(torch.zeros(2, 5), 1.0), 2),
        Normal(torch.zeros(2, 5), 1.0),
        StudentT(torch.ones(2)),
        Independent(q, 1),
    ]
    for other in others:
        for pair in ((q, other), (other, q)):
            with pytest.raises(NotImplementedError, match=r"Independent\(p, 1\) makes .* average q.log_prob"):
                kl_divergence(*pair)
    with pytest.raises(ValueError, match="as many steps, but got d = 5 and 4"):
        kl_divergence(q, q.marginal(range(4)))
