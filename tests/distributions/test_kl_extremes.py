"""KL of chain to chain in float32 against 170 decimal digits, at every size of logit, scale and distance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from rhovae.distributions import AR1Normal, kl_per_dim
from tests.distributions import exact

LOGITS = [0.0, 1e-4, 5.0, 8.0, 9.0, 20.0, 45.0, 60.0]
PAIRS = [*zip(LOGITS, LOGITS, strict=True), (9.0, 5.0), (5.0, 20.0), (60.0, 45.0), (0.0, 9.0), (9.0, 0.0)]


def from_logits(rows: list[Tensor]) -> tuple[AR1Normal, AR1Normal]:
    q = AR1Normal.from_logits(rows[0], rows[1], rows[2], validate_args=False)
    return q, AR1Normal.from_logits(rows[3], rows[4], rows[5], validate_args=False)


def natural(rows: list[Tensor]) -> tuple[AR1Normal, AR1Normal]:
    return AR1Normal(rows[0], rows[1], rows[2]), AR1Normal(rows[3], rows[4], rows[5])


def gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), leaves, materialize_grads=True, allow_unused=True)


def assert_digits(mine: Tensor, truth: Tensor) -> None:
    """As many as float32 has; where q is p the truth is 0 and the terms of the sum round to 1e-16."""
    torch.testing.assert_close(mine, truth.float(), rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("how", ["near", "apart", "shifted"])
def test_float32_has_its_digits_in_values_and_gradients(how: str, a: float, b: float, sign: int) -> None:
    generator = torch.Generator().manual_seed(4)
    near = 1e-3 if how == "near" else 1.0

    def spread(n: int) -> Tensor:
        return torch.randn(n, generator=generator)

    mu, log_s = spread(3), 0.5 * spread(3)
    m = mu - 0.75 if how == "shifted" else mu + near * spread(3)
    log_p = log_s + near * spread(3)
    logits = [a * (1 + 1e-3 * spread(2)), sign * b * (1 + 1e-3 * spread(2))]
    rows = [x.requires_grad_() for x in (mu, log_s, logits[0], m, log_p, logits[1])]
    terms, slopes = exact.with_gradients(exact.of_logits, rows)
    q, p = from_logits(rows)
    assert_digits(kl_per_dim(q, p), terms)
    assert_digits(kl_divergence(q, p), terms.sum())
    for mine, truth in zip(gradients(kl_divergence(q, p), rows), slopes, strict=True):
        assert_digits(mine, truth)


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("beside", [0.3, 1e-3, 1e-6])
def test_natural_parameters_keep_the_same_digits(beside: float, distance: float) -> None:
    generator = torch.Generator().manual_seed(4)

    def spread(n: int) -> Tensor:
        return torch.randn(n, generator=generator)

    corr = 1 - beside * torch.rand(2, generator=generator)
    scale = 100 * torch.rand(3, generator=generator)
    other = 1 - (1 - corr) * (1 + distance * torch.rand(2, generator=generator))
    mu = spread(3)
    rows = [mu, scale, corr, mu + distance * spread(3), scale * (1 + distance * 0.1 * spread(3)), other]
    rows = [x.requires_grad_() for x in rows]
    terms, slopes = exact.with_gradients(exact.of_chains, rows)
    q, p = natural(rows)
    assert_digits(kl_per_dim(q, p), terms)
    for mine, truth in zip(gradients(kl_divergence(q, p), rows), slopes, strict=True):
        torch.testing.assert_close(mine, truth.float(), rtol=1e-6, atol=1e-9)


def test_it_is_never_negative_and_a_chain_is_nothing_away_from_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    for reach in (1e-7, 1e-4, 1e-1):
        rows = [torch.randn(64, n, generator=generator) for n in (9, 9, 8)]
        rows[2] *= 12
        moved = [x + reach * torch.randn(x.shape, generator=generator) for x in rows]
        q, p = from_logits([*rows, *moved])
        assert (kl_per_dim(q, p) >= 0).all()
        assert (kl_divergence(q, q) < 1e-25).all()


@pytest.mark.parametrize("d", [65_536, 1_000_000])
def test_long_rows_keep_their_digits(d: int) -> None:
    """All steps alike, so that rounding does not average out: d times one term."""
    short, long = (AR1Normal.from_logits(torch.full((n,), 1e-4), 1e-5, 1.0 + 1e-4) for n in (3, d))
    base, far = (AR1Normal.from_logits(torch.zeros(n), 0.0, 1.0) for n in (3, d))
    first, term, _ = kl_per_dim(short, base).double().tolist()
    assert kl_divergence(long, far).item() == pytest.approx(first + (d - 1) * term, rel=1e-6)


SCALES = [-200.0, -90.0, -60.0, -44.0, 0.0, 44.0, 60.0, 90.0, 200.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_nothing_is_nan_however_far_the_parameters_run(spread: float, d: int, dtype: torch.dtype) -> None:
    grid = torch.tensor(
        list(itertools.product(SCALES, SCALES, LOGITS, (0.0, 9.0, -20.0, 200.0))), dtype=dtype
    )
    generator = torch.Generator().manual_seed(1)

    def around(column: int, n: int) -> Tensor:
        noise = torch.randn(len(grid), n, generator=generator, dtype=dtype)
        return (grid[:, column : column + 1] + spread * noise).requires_grad_()

    mu, m = (torch.randn(len(grid), d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    rows = [mu, around(0, d), around(2, d - 1), m, around(1, d), around(3, d - 1)]
    q, p = from_logits(rows)
    for value in (kl_per_dim(q, p), kl_divergence(q, p)):
        assert (value >= 0).all()
        assert not any(x.isnan().any() for x in gradients(value, rows))
    assert not any(x.isnan().any() for x in gradients(q.entropy(), rows))


@pytest.mark.parametrize("log_s", [-200.0, -60.0, 60.0, 200.0])
@pytest.mark.parametrize("logit", [0.0, 9.0, -60.0])
def test_nor_against_independent_and_dense_normals(logit: float, log_s: float) -> None:
    rows = [torch.randn(3), torch.full((3,), log_s), torch.full((2,), logit), torch.randn(3)]
    mu, log_scale, a, m = rows = [x.requires_grad_() for x in rows]
    q = AR1Normal.from_logits(mu, log_scale, a, validate_args=False)
    factor = torch.eye(3) + torch.ones(3, 3).tril(-1)
    plain, dense = Independent(Normal(m, torch.ones(3)), 1), MultivariateNormal(m, scale_tril=factor)
    for value in (
        kl_per_dim(q, plain),
        kl_divergence(plain, q),
        kl_divergence(q, dense),
        kl_divergence(dense, q),
    ):
        assert (value >= 0).all()
        assert not any(x.isnan().any() for x in gradients(value, rows))


@pytest.mark.parametrize("logit", [0.5, 5.0, 9.0, -9.0, 14.0])
def test_dense_normals_see_correlations_near_one(logit: float) -> None:
    """To and from N(m, I) in its dense form, whose KL is known term by term."""
    mu, log_s, a = (
        x.requires_grad_() for x in (torch.randn(3), 0.3 * torch.randn(3), torch.full((2,), logit))
    )
    chain, standard = [mu, log_s, a], [torch.zeros(3), torch.zeros(3), torch.zeros(2)]
    dense = MultivariateNormal(standard[0], scale_tril=torch.eye(3))
    q = AR1Normal.from_logits(mu, log_s, a)
    terms, slopes = exact.with_gradients(exact.of_logits, [*chain, *standard])
    back, back_slopes = exact.with_gradients(exact.of_logits, [*standard, *chain])
    for value, truth, own in (
        (kl_divergence(q, dense), terms, slopes[:3]),
        (kl_divergence(dense, q), back, back_slopes[3:]),
    ):
        assert_digits(value, truth.sum())
        for mine, theirs in zip(gradients(value, chain), own, strict=True):
            assert_digits(mine, theirs)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask", ["where", "index"])
@pytest.mark.parametrize("prior", ["chain", "independent"])
@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_what_stands_in_padded_steps_reaches_no_gradient(
    hole: float, prior: str, mask: str, shared: bool
) -> None:
    """Rows of 5 steps of which 3 count: gradients are those of the short rows, also of what rows share."""
    generator = torch.Generator().manual_seed(2)
    lead = (1,) if shared else (2,)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    leaves = [draw(2, 5), draw(2, 5), draw(2, 4), draw(*lead, 5), draw(*lead, 1), draw(*lead, 1)]

    def terms(n: int, rows: list[Tensor]) -> Tensor:
        mu, log_s, a, m, log_p, b = rows
        q = AR1Normal.from_logits(mu[:, :n], log_s[:, :n], a[:, : n - 1], validate_args=False)
        if prior == "chain":
            p: AR1Normal | Independent[Normal] = AR1Normal.from_logits(
                m[:, :n], log_p, b, validate_args=False
            )
        else:
            scale = log_p.exp().expand(-1, n)
            p = Independent(Normal(m[:, :n], scale, validate_args=False), 1)
        return kl_per_dim(q, p)

    wide = [x.clone() for x in leaves]
    for x, end in zip(wide[:3], (3, 3, 2), strict=True):
        x[:, end:] = hole
    long = terms(5, wide)
    valid = torch.arange(5) < 3
    kept = torch.where(valid, long, 0.0) if mask == "where" else long[:, valid]
    assert_same(gradients(kept, leaves), gradients(terms(3, leaves), leaves))


def assert_same(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_asked_for_is_nan_where_its_parameters_are() -> None:
    rows = [torch.zeros(n) for n in (3, 3, 2, 3, 3, 2)]
    rows[0][1] = math.nan
    rows = [x.requires_grad_() for x in rows]
    value = kl_divergence(*from_logits(rows))
    assert value.isnan()
    assert gradients(value, rows)[0].isnan().any()


def double(d: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = (d, d, d - 1, d, 1, 1)
    return [0.7 * torch.randn(1, n, generator=generator, dtype=torch.float64) for n in sizes]


def divergence(*rows: Tensor) -> Tensor:
    return kl_per_dim(*from_logits(list(rows)))


def test_derivatives_of_every_kind() -> None:
    rows = [x.requires_grad_() for x in double(3)]
    torch.autograd.gradcheck(
        divergence, rows, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    torch.autograd.gradgradcheck(divergence, rows, check_fwd_over_rev=True)


def test_transforms() -> None:
    rows = double(3)
    one = [x[0] for x in rows]

    def total(*rows: Tensor) -> Tensor:
        return divergence(*rows).sum(-1)

    torch.testing.assert_close(torch.func.vmap(total)(*rows), total(*rows))
    twice = torch.func.jacrev(torch.func.jacrev(total, 2), 2)(*one)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(total, 2), 2)(*one), twice)
    torch.testing.assert_close(torch.func.hessian(total, 2)(*one), twice)
    # at q = p the Hessian is the Fisher information
    same = [*one[:3], *one[:3]]
    assert torch.linalg.eigvalsh(torch.func.hessian(total, 2)(*same)).min() > 0
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for x in rows]
    assert_same(gradients(compiled(*leaves), leaves), gradients(total(*leaves), leaves))


@pytest.mark.parametrize("shape", [(0, 4), (0, 1), (3, 0, 2)])
def test_an_empty_batch(shape: tuple[int, ...]) -> None:
    tied = (*shape[:-1], shape[-1] - 1)
    rows = [
        torch.zeros(s).requires_grad_()
        for s in (shape, shape, tied, shape, (*shape[:-1], 1), (*shape[:-1], 1))
    ]
    value = kl_divergence(*from_logits(rows))
    assert value.shape == shape[:-1]
    assert all((g == 0).all() for g in gradients(value, rows))


def test_half_types() -> None:
    loc, zero = torch.randn(3, 5, dtype=torch.bfloat16).requires_grad_(), torch.zeros(5, dtype=torch.bfloat16)
    value = kl_divergence(AR1Normal(loc, 1.0, 0.5), AR1Normal(zero, 1.0, 0.5))
    single = kl_divergence(AR1Normal(loc.float(), 1.0, 0.5), AR1Normal(zero.float(), 1.0, 0.5))
    torch.testing.assert_close(value, single)
    assert [g.dtype for g in gradients(value, [loc])] == [torch.bfloat16]
