"""Where plain float32 arithmetic loses its digits: next to the prior, over long rows, at rho = 1, and where
an encoder's parameters run away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rhovae_ext
from tests.ext.compare import error

PER_STEP = pytest.mark.parametrize("per_step", [False, True], ids=["row", "step"])


def log_cosh(a: Tensor) -> Tensor:
    """Exact for float64 numbers of any size: the logarithm of 1 + 2 sinh^2(a/2)."""
    half = torch.sinh(a.abs().clamp(max=1.0) / 2)
    beyond = a.abs() + torch.log1p(torch.exp(-2 * a.abs())) - math.log(2)
    return torch.where(a.abs() < 1, torch.log1p(2 * half * half), beyond)


def kl_of_scale(log_s: Tensor) -> Tensor:
    """1/2 (s^2 - 1) - log s; near log s = 0 by its series."""
    x = 2 * log_s
    series = x * x / 4 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))))
    return torch.where(x.abs() < 1e-3, series, (torch.expm1(x) - x) / 2)


def parameter(value: float, d: int, per_step: bool) -> Tensor:
    return torch.full((1, d if per_step else 1), value)


@PER_STEP
@pytest.mark.parametrize("d", [1, 2, 37, 318, 1000, 65_536, 1_000_003])
def test_kl_is_right_next_to_the_prior_and_over_long_rows(backend: str, d: int, per_step: bool) -> None:
    """Equal values at every step: whatever is rounded is rounded the same way a million times."""
    scales = (0.0, 1e-4, -3e-3, 0.05, -0.2, 0.3464, 0.35, -0.3467, 0.41, -0.72, 1.3, -5.0, 30.0)
    logits = (1e-4, 0.0, -2e-3, 0.03, 0.25, -0.5, 0.9, 1.5, -4.0, 8.0, 20.0, 44.0, -90.0)
    for log_s, a, mean in zip(scales, logits, (0.0, 1e-3, 0.7) * 5, strict=False):
        mu = torch.full((1, d), mean)
        given = (parameter(log_s, d, per_step), parameter(a, d - 1, per_step))
        exact = d * (kl_of_scale(given[0].double().flatten()[:1]) + 0.5 * mu.double()[0, 0] ** 2)
        if d > 1:
            exact = exact + (d - 1) * log_cosh(given[1].double().flatten()[:1])
        for drawn in (False, True):
            if drawn:
                _, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, *given, key=(1, 2), backend=backend)
            else:
                kl = rhovae_ext.ar1_kl_with_logits(mu, *given, backend=backend)
            assert float(kl) >= 0
            assert error(kl, exact) <= 1e-6, (log_s, a, mean, float(kl), float(exact))


@PER_STEP
def test_kl_from_s_and_rho_is_right_next_to_the_prior(backend: str, per_step: bool) -> None:
    d = 3001
    for s, rho in (
        (1.0, 1e-4),
        (1.0001, 0.0),
        (0.997, -3e-3),
        (1.2, 0.2),
        (0.8, 0.7),
        (1.5, -0.72),
        (7.0, 0.9999),
    ):
        given = (parameter(s, d, per_step), parameter(rho, d - 1, per_step))
        exact_s, exact_rho = (value.double().flatten()[:1] for value in given)
        exact = d * kl_of_scale(torch.log1p(exact_s - 1)) - (d - 1) / 2 * torch.log1p(-exact_rho * exact_rho)
        kl = rhovae_ext.ar1_kl(torch.zeros(1, d), *given, backend=backend)
        assert float(kl) >= 0
        assert error(kl, exact) <= 1e-6, (s, rho)


@PER_STEP
@pytest.mark.parametrize("a", [3.0, 5.0, 8.25, -8.75, 9.5, 12.0, -16.0, 30.0])
def test_a_chain_keeps_its_variance_at_any_logit(backend: str, a: float, per_step: bool) -> None:
    """rho = tanh(a) rounds to 1 where c does not round to 0: the stationary variance must stay 1.

    What step 1 leaves at step n is rho^(n-1); steps 2 to n leave the rest, 1 - rho^(2(n-1)) in variance.
    """
    d = 1_000_000
    size = torch.tensor(abs(a), dtype=torch.float64)
    log_rho = torch.log(torch.tanh(size)) if abs(a) < 5 else -2 * torch.exp(-2 * size)
    steps = torch.arange(d, dtype=torch.float64)
    signs = torch.ones(d, dtype=torch.float64) if a > 0 else 1 - 2 * (steps % 2)
    logit = parameter(a, d - 1, per_step)
    zeros = torch.zeros(1, d)
    eps = zeros.clone()
    eps[0, 0] = 1
    eps.requires_grad_()
    z, _ = rhovae_ext.ar1_reparam_kl_with_logits(zeros, 0.0, logit, eps=eps, backend=backend)
    left = signs * torch.exp(log_rho * steps)
    # Without the noise, which would even it out, rounding goes one way for thousands of steps.
    assert float((z[0].detach() - left).abs().max()) < 1e-3
    # deps_k: what eps_k leaves at the last step.
    (weights,) = torch.autograd.grad(z[0, -1], eps)
    assert abs(float((weights.double() ** 2).sum()) - 1) < 1e-3
    assert abs(float(weights[0, 0]) - float(left[-1])) < 1e-3


@PER_STEP
@pytest.mark.parametrize("a", [4.0, 8.75, -12.0])
def test_gradients_of_a_long_chain_that_remembers(backend: str, a: float, per_step: bool) -> None:
    d = 200_000
    generator = torch.Generator().manual_seed(0)
    mu, eps, dz = torch.randn(3, 1, d, generator=generator)
    leaves = [mu, parameter(-0.3, d, per_step), parameter(a, d - 1, per_step)]
    truth: list[Tensor] = []
    found: list[Tensor] = []
    for dtype, where, name in ((torch.float64, truth, "reference"), (torch.float32, found, backend)):
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*own, eps=eps.to(dtype), backend=name)
        where += [z, *torch.autograd.grad((z * dz.to(dtype)).sum() + kl.sum(), own)]
    for ours, exact, name in zip(found, truth, ("z", "dmu", "dlog_s", "da"), strict=True):
        assert error(ours, exact) < 1e-3, name


RUN_AWAY = (44.0, 60.0, 80.0, 90.0, 120.0, 500.0, -44.0, -60.0, -80.0, -90.0, -120.0, -500.0)


@PER_STEP
@pytest.mark.parametrize("d", [1, 5, 40, 400])
@pytest.mark.parametrize("log_s", RUN_AWAY)
def test_a_scale_that_runs_away_gives_no_nan(backend: str, log_s: float, d: int, per_step: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for logit in (0.0, 1.0, -9.0, 50.0):
        leaves = [
            torch.randn(3, d, generator=generator),
            parameter(log_s, d, per_step).expand(3, -1).clone(),
            parameter(logit, d - 1, per_step).expand(3, -1).clone(),
        ]
        leaves[1][0] = 0.3  # one row as it should be
        for leaf in leaves:
            leaf.requires_grad_()
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*leaves, key=(1, 2), backend=backend)
        density = rhovae_ext.ar1_log_prob_with_logits(leaves[0].detach() + 1, *leaves, backend=backend)
        at_mean = rhovae_ext.ar1_log_prob_with_logits(leaves[0].detach(), *leaves, backend=backend)
        for output in (z, kl, density, at_mean):
            assert not output.isnan().any()
            assert output[0].isfinite().all()
        if log_s > 44:
            assert kl[1:].isinf().all() or log_s == 44
        parts = torch.randn(3, d, generator=generator)
        losses = {
            "z": (z * parts).sum(),
            "z, of zeros": (z * 0.0).sum() if z.isfinite().all() else (z[:1] * 0.0).sum(),
            "kl": kl.sum(),
            "kl of one row": kl[0],
            "both": (z * parts).sum() + kl.sum(),
            "density": density.sum(),
            "density at the mean": at_mean.sum(),
        }
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
            for of, gradient in zip(("mu", "log_s", "logit"), gradients, strict=True):
                assert not gradient.isnan().any(), (name, of, logit)
                assert gradient[0].isfinite().all(), (name, of, logit)


@PER_STEP
def test_log_density_of_any_logit_is_finite_at_points_of_size_one(backend: str, per_step: bool) -> None:
    d = 9
    generator = torch.Generator().manual_seed(0)
    for a in (30.0, -39.0, 45.0, -50.0, 80.0, 200.0):
        leaves = [
            torch.randn(2, d, generator=generator).requires_grad_(),
            torch.zeros(2, 1).requires_grad_(),
            parameter(a, d - 1, per_step).expand(2, -1).clone().requires_grad_(),
        ]
        density = rhovae_ext.ar1_log_prob_with_logits(
            torch.randn(2, d, generator=generator), *leaves, backend=backend
        )
        assert density.isfinite().all(), a
        for gradient in torch.autograd.grad(density.sum(), leaves):
            assert gradient.isfinite().all(), a
