"""AR1Normal against dense multivariate normals in float64, and against its own samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, biject_to, kl_divergence

import rhovae
from rhovae.distributions import AR1Normal, correlation
from tests.distributions.chains import BATCH, KINDS, assert_same_with_gradients, both, parameters, truth

SIZES = [1, 2, 7]


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize(
    "what", ["mean", "variance", "stddev", "covariance_matrix", "scale_tril", "precision_matrix", "entropy"]
)
def test_moments_and_matrices_with_gradients(what: str, kind: tuple[str, str], d: int) -> None:
    q, p, leaves = both(kind, d)
    mine, theirs = getattr(q, what), getattr(p, what)
    if what == "entropy":
        mine, theirs = mine(), theirs()
    assert_same_with_gradients(mine, theirs, leaves)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_log_prob_with_gradients(kind: tuple[str, str], d: int) -> None:
    q, p, leaves = both(kind, d)
    z = torch.randn(5, *BATCH, d, dtype=torch.float64, requires_grad=True)
    assert_same_with_gradients(q.log_prob(z), p.log_prob(z), [z, *leaves])


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_rsample_is_the_dense_factor_times_the_noise(kind: tuple[str, str], d: int) -> None:
    q, p, leaves = both(kind, d)
    zero = torch.zeros(*BATCH, d, dtype=torch.float64)
    eps = AR1Normal(zero, 1.0, 0.0).rsample((2, 3), key=(3, 4))
    z = torch.einsum("...ij,sr...j->sr...i", p.scale_tril, eps) + p.loc
    assert_same_with_gradients(q.rsample((2, 3), key=(3, 4)), z, leaves)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_logits_are_another_way_to_say_it(kind: tuple[str, str]) -> None:
    loc, scale, corr = parameters(kind, 5)
    q = AR1Normal(loc, scale, corr)
    a = AR1Normal.from_logits(loc, scale.log(), corr.atanh())
    for name in ("scale", "corr", "log_scale", "corr_logit", "covariance_matrix"):
        assert_same_with_gradients(getattr(a, name), getattr(q, name), [loc, scale, corr])
    assert q.scale.shape == a.scale.shape == (*BATCH, 5)
    assert q.corr.shape == a.corr.shape == (*BATCH, 4)
    torch.testing.assert_close(a.rsample(key=(1, 2)), q.rsample(key=(1, 2)))


def test_sample_moments() -> None:
    q, p, _ = both(("step", "step"), 4)
    n = 40_000
    z = q.sample((n,))
    assert not z.requires_grad
    assert z.shape == (n, *BATCH, 4)
    assert ((z.mean(0) - p.mean).abs() < 5 * p.stddev / n**0.5).all()
    centred = z - z.mean(0)
    covariance = torch.einsum("nabi,nabj->abij", centred, centred) / (n - 1)
    # the standard error of a covariance from n draws is at most sqrt(2) s_i s_j / sqrt(n)
    bound = 5 * (2 / n) ** 0.5 * p.stddev.unsqueeze(-1) * p.stddev.unsqueeze(-2)
    assert ((covariance - p.covariance_matrix).abs() < bound).all()
    # the entropy is the expected surprise
    surprise = -q.log_prob(z)
    assert ((surprise.mean(0) - q.entropy()).abs() < 5 * surprise.std(0) / n**0.5).all()


@pytest.mark.parametrize("sample_shape", [(), (1,), (3,), (2, 5), (0,), (2, 0)])
@pytest.mark.parametrize("batch_shape", [(), (1,), (6,), (2, 3)])
def test_shapes(sample_shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> None:
    d = 5
    q = AR1Normal(torch.zeros(*batch_shape, d), torch.ones(*batch_shape, 1), 0.3)
    assert (q.batch_shape, q.event_shape) == (batch_shape, (d,))
    z = q.rsample(sample_shape)
    assert z.shape == (*sample_shape, *batch_shape, d)
    assert q.sample(sample_shape).shape == z.shape
    assert q.log_prob(z).shape == (*sample_shape, *batch_shape)
    assert q.entropy().shape == q.rsample_kl(sample_shape)[1].shape == batch_shape
    assert q.covariance_matrix.shape == (*batch_shape, d, d)
    assert [b.shape for b in q.precision_bands()] == [(*batch_shape, d), (*batch_shape, d - 1)]


def test_parameters_broadcast() -> None:
    loc, scale, corr = torch.zeros(3, 1, 5), torch.ones(1, 4, 1), torch.zeros(2, 1, 1, 4)
    q = AR1Normal(loc, scale, corr)
    assert q.batch_shape == (2, 3, 4)
    assert q.loc.shape == q.scale.shape == (2, 3, 4, 5)
    assert q.rsample().shape == (2, 3, 4, 5)


@pytest.mark.parametrize("form", [AR1Normal, AR1Normal.from_logits])
def test_parameters_broadcast_from_the_right_whatever_the_sizes(form: Any) -> None:
    """A batch as long as the chain changes nothing: (d,) is per step, as in Normal."""
    loc, value = torch.zeros(4, 4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    normal = Normal(loc, value)
    q = form(loc, value, value[:3])
    given, ties = (q.scale, q.corr) if form is AR1Normal else (q.log_scale, q.corr_logit)
    assert torch.equal(given, normal.scale)
    assert torch.equal(ties, value[:3].expand(4, 3))
    q = form(loc, value[:, None], value[:, None])
    given, ties = (q.scale, q.corr) if form is AR1Normal else (q.log_scale, q.corr_logit)
    assert torch.equal(given, value[:, None].expand(4, 4))
    assert torch.equal(ties, value[:, None].expand(4, 3))


def test_two_steps_have_one_tie() -> None:
    loc, corr = torch.zeros(3, 2), torch.tensor([[0.1], [0.2], [0.3]])
    assert torch.equal(AR1Normal(loc, 1.0, corr).corr, corr)
    assert torch.equal(AR1Normal(loc, 1.0, corr[0]).corr, corr[:1].expand(3, 1))


def test_parameters_of_more_axes_make_the_batch() -> None:
    d = 4
    loc, scale, corr = torch.randn(d), torch.rand(2, 1, 1) + 0.5, torch.rand(3, d - 1) - 0.5
    leaves = [x.double().requires_grad_() for x in (loc, scale, corr)]
    q = AR1Normal(*leaves)
    assert (q.batch_shape, q.event_shape) == ((2, 3), (d,))
    p = truth(*(x.expand(2, 3, -1) for x in leaves))
    z = torch.randn(2, 3, d).double()
    assert_same_with_gradients(q.log_prob(z), p.log_prob(z), leaves)
    assert_same_with_gradients(q.covariance_matrix, p.covariance_matrix, leaves)
    assert q.rsample((5,)).shape == (5, 2, 3, d)


def test_half_types_compute_in_float32() -> None:
    loc = torch.randn(3, 5, dtype=torch.bfloat16)
    q = AR1Normal(loc, torch.ones(3, 1, dtype=torch.bfloat16), 0.5)
    assert q.rsample().dtype == torch.bfloat16
    assert {x.dtype for x in (q.log_prob(loc), q.entropy(), q.covariance_matrix)} == {torch.float32}
    assert q.condition(loc[..., :2]).loc.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_expand_is_a_view_that_draws_anew(kind: tuple[str, str]) -> None:
    q, p, leaves = both(kind, 5)
    e = q.expand((2, *BATCH))
    assert (e.batch_shape, e.event_shape, type(e)) == ((2, *BATCH), (5,), AR1Normal)
    assert e.loc.untyped_storage().data_ptr() == q.loc.untyped_storage().data_ptr()
    z = e.rsample()
    assert not torch.equal(z[0], z[1])
    dense = p.expand((2, *BATCH))
    assert_same_with_gradients(e.log_prob(z.detach()), dense.log_prob(z.detach()), leaves)
    assert_same_with_gradients(e.covariance_matrix, dense.covariance_matrix, leaves)
    assert e.entropy().shape == (2, *BATCH)


@pytest.mark.parametrize(
    ("loc", "scale", "corr", "message"),
    [
        ([0.0, 0.0], 0.0, 0.5, "scale"),
        ([0.0, 0.0], -1.0, 0.5, "scale"),
        ([0.0, 0.0], 1.0, 1.0, "corr"),
        ([0.0, 0.0], 1.0, -1.5, "corr"),
        ([0.0, float("nan")], 1.0, 0.5, "loc"),
    ],
)
def test_validate_args_names_the_parameter(loc: list[float], scale: float, corr: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"parameter {message}"):
        AR1Normal(torch.tensor(loc), scale, corr, validate_args=True)
    AR1Normal(torch.tensor(loc), scale, corr, validate_args=False)


@pytest.mark.parametrize("corr", [1, -1, 1.0, 1 - 1e-9, float("nan"), torch.tensor([0.5, -1.0])])
def test_a_correlation_lies_inside_or_is_nan(corr: Tensor | float) -> None:
    loc = torch.zeros(3)
    with pytest.raises(ValueError, match="parameter corr"):
        AR1Normal(loc, 1.0, corr)
    q, p = AR1Normal(loc, 1.0, corr, validate_args=False), AR1Normal(loc, 1.0, 0.5)
    for value in (q.log_prob(loc), q.entropy(), kl_divergence(q, p), kl_divergence(p, q)):
        assert value.isnan()


def test_a_half_that_rounds_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter corr"):
        AR1Normal(torch.zeros(3).half(), 1.0, torch.tensor(0.9999).half())


@pytest.mark.parametrize("logit", [5.0, 9.0, 20.0, -9.0])
def test_the_slope_of_a_correlation_keeps_its_digits(logit: float) -> None:
    a = torch.tensor(logit, requires_grad=True)
    (slope,) = torch.autograd.grad(AR1Normal.from_logits(torch.zeros(2), 0.0, a).corr.sum(), a)
    assert slope.item() == pytest.approx(math.cosh(logit) ** -2, rel=1e-6)


def test_entropy_of_small_logits_and_of_long_rows() -> None:
    d = 1_000_000
    a = torch.tensor(1e-3, requires_grad=True)
    q = AR1Normal.from_logits(torch.zeros(d), -0.5 * math.log(2 * math.pi * math.e), a)
    truth = -(d - 1) * math.log(math.cosh(1e-3)) + d * (
        float(q.log_scale[0]) + 0.5 * math.log(2 * math.pi * math.e)
    )
    assert q.entropy().item() == pytest.approx(truth, rel=1e-6, abs=0.1)
    (slope,) = torch.autograd.grad(q.entropy(), a)
    assert slope.item() == pytest.approx(-(d - 1) * math.tanh(1e-3), rel=1e-6)


def test_validate_args_of_logits_and_of_values() -> None:
    loc = torch.zeros(2)
    saturated = AR1Normal.from_logits(loc, 0.0, 60.0, validate_args=True)
    assert saturated.corr.item() == 1.0
    assert saturated.rsample().isfinite().all()
    with pytest.raises(ValueError, match="parameter corr_logit"):
        AR1Normal.from_logits(loc, 0.0, float("nan"), validate_args=True)
    with pytest.raises(ValueError, match="event_shape"):
        saturated.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="support"):
        saturated.log_prob(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(
    ("loc", "scale", "corr", "message"),
    [
        (torch.zeros(()), 1.0, 0.0, r"AR1Normal: loc must be of shape \(\.\.\., d\)"),
        (
            torch.zeros(3, 4),
            torch.ones(3),
            0.0,
            r"AR1Normal: scale must .*\(3,\).*give scale\[\.\.\., None\]",
        ),
        (torch.zeros(3, 4), torch.ones(3, 2), 0.0, r"AR1Normal: scale must be a number or, from the right"),
        (torch.zeros(3, 4), torch.ones(2, 4), 0.0, r"AR1Normal: scale must .*broadcasting with \(3,\)"),
        (
            torch.zeros(3, 4),
            1.0,
            torch.zeros(3, 4),
            r"AR1Normal: corr must be .* \(\.\.\., d-1\) = \(\.\.\., 3\)",
        ),
        (
            torch.zeros(4),
            torch.ones(3, 1),
            torch.zeros(2, 1),
            r"AR1Normal: corr must .*broadcasting with \(3,\)",
        ),
    ],
)
def test_wrong_shapes_are_named(loc: Tensor, scale: Tensor, corr: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AR1Normal(loc, scale, corr)


def test_a_negative_sample_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no negative size, got \(2, -1\)"):
        AR1Normal(torch.zeros(3), 1.0, 0.0).rsample((2, -1))


def test_constraint_of_a_correlation() -> None:
    transform = biject_to(correlation)
    a = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(transform(a), a.tanh())
    assert correlation.check(torch.tensor([-1.0, -0.9, 0.0, 1.0])).tolist() == [False, True, True, False]
    of_a_row = AR1Normal.arg_constraints["corr"]
    assert of_a_row.check(torch.tensor([[0.5, 0.9], [0.5, 1.0]])).tolist() == [True, False]
    corr = biject_to(of_a_row)(torch.randn(3, 4))
    assert of_a_row.check(corr).all()
    assert {name: c.event_dim for name, c in AR1Normal.arg_constraints.items()} == dict.fromkeys(
        ("loc", "scale", "corr", "log_scale", "corr_logit"), 1
    )


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("steps", [[0], [6], [0, 1, 2], [1, 4], [0, 2, 3, 6], [-5, -1], range(7)])
def test_marginal_of_steps(steps: list[int], kind: tuple[str, str]) -> None:
    q, p, leaves = both(kind, 7)
    mine = q.marginal(steps)
    chosen = list(steps)
    assert_same_with_gradients(mine.mean, p.mean[..., chosen], leaves)
    assert_same_with_gradients(
        mine.covariance_matrix, p.covariance_matrix[..., chosen, :][..., chosen], leaves
    )


def test_marginal_of_one_step_and_of_a_slice() -> None:
    q, p, leaves = both(("step", "step"), 7)
    one = q.marginal(-2)
    assert isinstance(one, torch.distributions.Normal)
    assert_same_with_gradients(one.variance, p.variance[..., -2], leaves)
    assert torch.equal(q.marginal(slice(None, None, 3)).loc, q.loc[..., ::3])
    with pytest.raises(IndexError):
        q.marginal(7)
    for wrong in ([], [1, 1], [3, 2], slice(5, 5)):
        with pytest.raises(ValueError, match="increasing steps"):
            q.marginal(wrong)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("given", [1, 2, 5, 6])
def test_condition_is_the_ratio_of_densities(given: int, kind: tuple[str, str]) -> None:
    q, p, leaves = both(kind, 7)
    z = torch.randn(*BATCH, 7, dtype=torch.float64, requires_grad=True)
    rest = q.condition(z[..., :given])
    prefix = MultivariateNormal(p.mean[..., :given], p.covariance_matrix[..., :given, :given])
    density = p.log_prob(z) - prefix.log_prob(z[..., :given])
    assert_same_with_gradients(rest.log_prob(z[..., given:]), density, [z, *leaves])
    # Schur complement
    c = p.covariance_matrix
    a, b, e = c[..., :given, :given], c[..., given:, :given], c[..., given:, given:]
    assert_same_with_gradients(rest.covariance_matrix, e - b @ a.inverse() @ b.mT, leaves)


def test_condition_broadcasts_and_refuses() -> None:
    q, _, _ = both(("row", "row"), 7)
    prefix = torch.randn(9, *BATCH, 3, dtype=torch.float64)
    assert q.condition(prefix).rsample().shape == (9, *BATCH, 4)
    for wrong in (torch.zeros(()), torch.zeros(0), torch.zeros(7)):
        with pytest.raises(ValueError, match=r"1 <= p < d = 7"):
            q.condition(wrong.double())


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_reverse(kind: tuple[str, str]) -> None:
    q, p, leaves = both(kind, 7)
    z = torch.randn(*BATCH, 7, dtype=torch.float64)
    assert_same_with_gradients(q.reverse().log_prob(z.flip(-1)), p.log_prob(z), leaves)
    assert_same_with_gradients(q.reverse().covariance_matrix, p.covariance_matrix.flip((-1, -2)), leaves)


def test_precision_bands_are_all_there_is() -> None:
    loc, scale, corr = parameters(("step", "step"), 7)
    precision = truth(loc, scale, corr).covariance_matrix.inverse()
    diagonal, beside = AR1Normal(loc, scale, corr).precision_bands()
    torch.testing.assert_close(diagonal, precision.diagonal(0, -2, -1))
    torch.testing.assert_close(beside, precision.diagonal(1, -2, -1))


def test_nearly_perfect_correlation_keeps_its_digits() -> None:
    # float32 from logits, with 1 - rho near 1e-7, against float64
    logits = torch.tensor([7.5, -8.0, 6.0, 7.0])
    q = AR1Normal.from_logits(torch.zeros(5), 0.0, logits)
    w = AR1Normal.from_logits(torch.zeros(5).double(), 0.0, logits.double())
    prefix = torch.tensor([0.3, -0.2])
    for mine, theirs in (
        (q.marginal([0, 2, 4]).corr_logit, w.marginal([0, 2, 4]).corr_logit),
        (q.condition(prefix).log_scale, w.condition(prefix.double()).log_scale),
        (q.condition(prefix).corr_logit, w.condition(prefix.double()).corr_logit),
        (q.entropy(), w.entropy()),
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_key_and_rows_decide_the_noise() -> None:
    q = AR1Normal(torch.zeros(6, 5), 1.0, 0.5)
    whole = q.rsample((2,), key=(9, 2))
    part = AR1Normal(torch.zeros(2, 5), 1.0, 0.5).rsample((2,), key=(9, 2), row_offset=4)
    assert torch.equal(whole[:, 4:], part)
    torch.manual_seed(1)
    first = q.rsample()
    torch.manual_seed(1)
    assert torch.equal(first, q.rsample())
    assert not torch.equal(first, q.rsample())


def test_it_is_at_the_top() -> None:
    assert rhovae.AR1Normal is AR1Normal
    assert repr(AR1Normal(torch.zeros(3, 5), 1.0, 0.0)) == "AR1Normal(batch_shape=(3,), d=5)"
