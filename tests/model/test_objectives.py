"""Bounds against a linear-Gaussian model, where the truth is known."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from rhovae.objectives import (
    Objective,
    active_units,
    free_bits,
    iwae,
    mmd,
    negative_elbo,
    standard_normal_log_prob,
)
from rhovae.posteriors import Posterior
from rhovae_ext import fold_in


class LinearGaussian(NamedTuple):
    """z ~ N(0, I), x ~ N(W z, noise^2 I); a bidiagonal W makes the posterior's precision tridiagonal."""

    weight: Tensor
    noise: float

    @classmethod
    def make(cls, d: int) -> LinearGaussian:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(d, d, generator=generator, dtype=torch.float64).tril().triu(-1)
        return cls(weight, 0.6)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        residual = (x - z @ self.weight.T) / self.noise
        constant = x.shape[-1] * (0.5 * math.log(2 * math.pi) + math.log(self.noise))
        return -0.5 * residual.square().sum(-1) - constant

    def evidence(self, x: Tensor) -> Tensor:
        d = x.shape[-1]
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(d).double()
        log_prob: Tensor = MultivariateNormal(torch.zeros(d).double(), covariance).log_prob(x)
        return log_prob

    def exact_posterior(self, x: Tensor) -> Posterior:
        d = x.shape[-1]
        covariance = (torch.eye(d).double() + self.weight.T @ self.weight / self.noise**2).inverse()
        mu = x @ self.weight @ covariance.T / self.noise**2
        s = covariance.diagonal().sqrt()
        rho = covariance.diagonal(1) / (s[1:] * s[:-1])
        return Posterior(mu, s.log().expand(len(x), d), rho.atanh().expand(len(x), d - 1))

    def expected_log_likelihood(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Closed form for independent dimensions."""
        spread = (self.weight.square() * variance[..., None, :]).sum((-1, -2)) / self.noise**2
        expected: Tensor = self.log_likelihood(x, mean) - 0.5 * spread
        return expected


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian.make(5)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("samples", "chunk"), [(1, 1), (5, 2), (16, 16), (33, 16)])
def test_exact_correlated_posterior_gives_the_evidence(
    model: LinearGaussian, x: Tensor, samples: int, chunk: int
) -> None:
    q = model.exact_posterior(x)
    estimate = iwae(q, lambda z: model.log_likelihood(x, z), samples, chunk=chunk, key=(5, 6))
    # every importance weight equals p(x) when the proposal is the posterior, correlations included
    torch.testing.assert_close(estimate.bound, model.evidence(x), rtol=1e-10, atol=1e-10)


def test_elbo_of_the_exact_posterior_is_the_evidence(model: LinearGaussian, x: Tensor) -> None:
    q = model.exact_posterior(x)
    estimate = iwae(q, lambda z: model.log_likelihood(x, z), 20_000, chunk=5000, key=(1, 2))
    elbo = -negative_elbo(estimate.log_likelihood, q.kl())
    assert elbo.item() == pytest.approx(model.evidence(x).mean().item(), abs=0.05)


def test_elbo_of_a_diagonal_posterior_in_closed_form(model: LinearGaussian, x: Tensor) -> None:
    exact = model.exact_posterior(x)
    q = Posterior(exact.mu, exact.log_s)
    expected = model.expected_log_likelihood(x, q.mean, q.stddev.square()) - q.kl()
    estimate = iwae(q, lambda z: model.log_likelihood(x, z), 20_000, chunk=5000, key=(1, 2))
    elbo = estimate.log_likelihood - q.kl()
    torch.testing.assert_close(elbo, expected, rtol=0.0, atol=0.1)
    # losing the correlation costs a gap that more samples close
    evidence = model.evidence(x)
    assert (expected < evidence).all()
    assert (estimate.bound - evidence).abs().max() < 0.1 * (evidence - expected).max()


def test_bound_grows_with_samples(model: LinearGaussian, x: Tensor) -> None:
    exact = model.exact_posterior(x)
    q = Posterior(exact.mu, exact.log_s)

    def mean_bound(samples: int) -> float:
        repeats = [
            iwae(q, lambda z: model.log_likelihood(x, z), samples, key=(9, i << 48)).bound.mean()
            for i in range(200)
        ]
        return torch.stack(repeats).mean().item()

    one, four, sixteen = mean_bound(1), mean_bound(4), mean_bound(16)
    assert one < four < sixteen < model.evidence(x).mean().item() + 0.05


def test_split_of_the_batch_changes_nothing(model: LinearGaussian, x: Tensor) -> None:
    q = model.exact_posterior(x)
    diag = Posterior(q.mu, q.log_s)
    whole = iwae(diag, lambda z: model.log_likelihood(x, z), 10, chunk=3, key=(4, 4))
    part = iwae(
        Posterior(q.mu[2:5], q.log_s[2:5]),
        lambda z: model.log_likelihood(x[2:5], z),
        10,
        chunk=3,
        key=(4, 4),
        row_offset=2,
    )
    torch.testing.assert_close(whole.bound[2:5], part.bound, rtol=1e-12, atol=1e-12)


def test_chunks_draw_different_noise(model: LinearGaussian, x: Tensor) -> None:
    q = model.exact_posterior(x)
    seen: list[Tensor] = []

    def keep(z: Tensor) -> Tensor:
        seen.append(z)
        return model.log_likelihood(x, z)

    iwae(q, keep, 6, chunk=2, key=(4, 2**64 - 1))
    draws = torch.cat(seen)
    assert draws.shape[0] == 6
    assert torch.unique(draws[:, 0], dim=0).shape[0] == 6
    assert torch.equal(seen[1], q.rsample(2, key=fold_in((4, 2**64 - 1), 2)))


def test_iwae_gradient_reaches_the_posterior(model: LinearGaussian, x: Tensor) -> None:
    exact = model.exact_posterior(x)
    logit = torch.zeros(7, 4, dtype=torch.float64, requires_grad=True)
    q = Posterior(exact.mu, exact.log_s, logit)
    bound = iwae(q, lambda z: model.log_likelihood(x, z), 64, key=(0, 0)).bound.mean()
    (gradient,) = torch.autograd.grad(bound, logit)
    # uphill is towards the true correlations
    target = exact.rho_logit
    assert isinstance(target, Tensor)
    assert (gradient * target).sum() > 0


def test_negative_elbo_divides_both_terms_by_the_batch() -> None:
    log_likelihood = torch.tensor([-10.0, -20.0, -60.0])
    kl = torch.tensor([1.0, 2.0, 6.0])
    assert negative_elbo(log_likelihood, kl).item() == pytest.approx(33.0)
    assert negative_elbo(log_likelihood, kl, batch_size=6).item() == pytest.approx(16.5)
    samples = torch.stack([log_likelihood - 3, log_likelihood + 3])
    assert negative_elbo(samples, kl).item() == pytest.approx(33.0)


@pytest.mark.parametrize(("likelihood", "kl"), [((3,), (2,)), ((3, 4), (3, 4)), ((), ()), ((2, 3), (2,))])
def test_negative_elbo_refuses_unsummed_terms(likelihood: tuple[int, ...], kl: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="negative_elbo: expected"):
        negative_elbo(torch.zeros(likelihood), torch.zeros(kl))


def test_iwae_takes_keys_of_every_kind(model: LinearGaussian, x: Tensor) -> None:
    q = model.exact_posterior(x)
    proposal = Posterior(q.mu, q.log_s)  # of which the bound depends on the draws

    def bound(key: Any) -> Tensor:
        return iwae(proposal, lambda z: model.log_likelihood(x, z), 6, chunk=2, key=key).bound

    last = 2**64 - 1
    pair = bound((last, last))
    assert torch.equal(pair, bound(torch.tensor([last, last], dtype=torch.uint64)))
    derived = fold_in(3, 1)
    assert torch.equal(bound(derived), bound(tuple(derived.tolist())))
    assert not torch.equal(bound(derived), bound(fold_in(3, 2)))


@pytest.mark.parametrize(("samples", "chunk"), [(0, 1), (1, 0)])
def test_iwae_refuses_no_samples(model: LinearGaussian, x: Tensor, samples: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        iwae(model.exact_posterior(x), lambda z: model.log_likelihood(x, z), samples, chunk=chunk)


def test_standard_normal_log_prob() -> None:
    z = torch.randn(3, 4, 6, dtype=torch.float64)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(standard_normal_log_prob(z), truth)
    assert standard_normal_log_prob(z.bfloat16()).dtype == torch.float32


def test_active_units_counts_variances_above_the_threshold() -> None:
    n = 1000
    base = torch.linspace(-1, 1, n)
    base = base / base.std()
    # variances 1, 0.0121, 0.0081 and 0, the last on a large constant
    means = torch.stack([base, 0.11 * base, 0.09 * base, torch.full((n,), 50.0)], 1)
    assert active_units(means) == 2
    assert active_units(means, threshold=0.005) == 3
    with pytest.raises(ValueError, match="active_units"):
        active_units(means[:1])


def test_kl_weight_grows_and_stays() -> None:
    objective = Objective(beta=4.0, warmup=2.0)
    assert [objective.kl_weight(t) for t in (0.0, 0.5, 1.0, 2.0, 9.0)] == [0.0, 1.0, 2.0, 4.0, 4.0]
    assert Objective(beta=4.0).kl_weight(0.0) == 4.0


def test_free_bits_hold_the_mean_of_each_dimension() -> None:
    kl = torch.tensor([[0.1, 3.0], [0.3, 1.0]], requires_grad=True)
    cost = free_bits(kl, 0.5)
    # dimension 0 has mean 0.2 and costs the half nat that is free; dimension 1 its own mean, 2
    assert cost.mean().item() == pytest.approx(0.5 + 2.0)
    (gradient,) = torch.autograd.grad(cost.mean(), kl)
    assert gradient.tolist() == [[0.0, 0.5], [0.0, 0.5]]
    # the same line in a part of a batch, given the whole's mean
    whole = kl.detach().mean(0)
    parts = torch.cat([free_bits(kl[:1], 0.5, whole), free_bits(kl[1:], 0.5, whole)])
    torch.testing.assert_close(parts, cost)


def test_mmd_against_its_definition() -> None:
    z, prior = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    z.requires_grad_()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a - b).square().sum() / 6)

    within_z = sum(kernel(z[i], z[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_p = sum(kernel(prior[i], prior[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(kernel(a, b) for a in z for b in prior) / 20
    truth = within_z + within_p - 2 * between
    assert isinstance(truth, Tensor)
    torch.testing.assert_close(mmd(z, prior), truth)
    torch.testing.assert_close(*(torch.autograd.grad(value, z) for value in (mmd(z, prior), truth)))
    with pytest.raises(ValueError, match="at least two rows"):
        mmd(z[:1], prior)


def test_mmd_tells_samples_apart() -> None:
    draws = [torch.randn(2, 200, 6) for _ in range(100)]
    same = torch.stack([mmd(a, b) for a, b in draws])
    # unbiased: nothing on average where there is nothing
    assert same.mean().abs() < 5 * same.std() / 10
    shifted = torch.stack([mmd(a + 0.5, b) for a, b in draws])
    assert shifted.min() > same.max()
    assert mmd(torch.zeros(4, 2, dtype=torch.bfloat16), torch.ones(4, 2)).dtype == torch.float32


def test_free_bits_hide_no_nan_and_mmd_makes_none() -> None:
    kl = torch.tensor([[0.1, float("nan"), 3.0]])
    assert free_bits(kl, 1.0).isnan().all()
    far = (1e25 * torch.randn(4, 3)).requires_grad_()
    value = mmd(far, torch.randn(5, 3))
    (slope,) = torch.autograd.grad(value, far)
    assert value.isfinite()
    assert (slope == 0).all()
