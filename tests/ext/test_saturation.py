"""Where parameters leave what the type can hold: logits stay finite, what is invalid stays in its row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rhovae_ext
from tests.ext.cases import Case, results
from tests.ext.compare import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
PER_STEP = pytest.mark.parametrize("per_step", [False, True], ids=["row", "step"])
LOGITS = (-500.0, -90.0, -44.0, -20.0, -9.0, 9.0, 20.0, 44.0, 90.0, 500.0)


def _parameters(values: tuple[float, ...], d: int, per_step: bool, dtype: torch.dtype) -> Tensor:
    column = torch.tensor(values, dtype=dtype).unsqueeze(-1)
    return column.expand(len(values), d).contiguous() if per_step else column


@DTYPES
@PER_STEP
@pytest.mark.parametrize("d", [2, 16, 130])
def test_logits_of_any_size(backend: str, dtype: torch.dtype, per_step: bool, d: int) -> None:
    rho_logit = _parameters(LOGITS, d - 1, per_step, dtype)
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(len(LOGITS), d, dtype=dtype, generator=generator)
    for log_s in (-1.0, 0.5):
        scale = _parameters((log_s,) * len(LOGITS), d, per_step, dtype)
        case = Case(mu, scale, rho_logit, True, options={"key": (1, 1), "num_samples": None})
        outputs = results(case, backend, torch.ones_like(mu), torch.ones(len(LOGITS), dtype=dtype))
        for name, value in outputs.items():
            assert value.isfinite().all(), name
        size = rho_logit.double().abs().expand(-1, d - 1)
        tied = 2 * (size + torch.log1p(torch.exp(-2 * size)) - math.log(2))
        own = math.exp(2 * log_s) - 1 - 2 * log_s + mu.double() ** 2
        assert_close(outputs["kl"], 0.5 * (own.sum(-1) + tied.sum(-1)), "kl")
        # Past the last digit of rho the chain is one number, with the sign of rho at every step.
        z = (outputs["z"] - mu) / math.exp(log_s)
        signs = torch.sign(rho_logit).expand(-1, d - 1).cumprod(-1)
        assert_close(z[[0, -1], 1:], (z[:, :1] * signs)[[0, -1]], "z", tolerance=1e-4)


@DTYPES
def test_gradients_of_saturated_logits_are_the_true_ones(backend: str, dtype: torch.dtype) -> None:
    """dKL/da = (d - 1) tanh(a), and z's part vanishes like 1/cosh(a)."""
    d = 16
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    mu = torch.zeros(len(LOGITS), d, dtype=dtype)
    z, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, 0.0, logits, key=(1, 1), backend=backend)
    (by_kl,) = torch.autograd.grad(kl.sum(), logits, retain_graph=True)
    assert_close(by_kl, (d - 1) * torch.tanh(logits.detach().double()), "dKL/da")
    (by_z,) = torch.autograd.grad(z.sum(), logits)
    assert float(by_z[[0, 1, -2, -1]].abs().max()) < 1e-10
    # At |a| = 9 the derivative is about 1e-3 of eps: it needs c (c x - rho eps), not x - rho x.
    truth = logits.detach().double().requires_grad_()
    eps = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=(1, 1), backend=backend).double()
    z, _ = rhovae_ext.ar1_reparam_kl_with_logits(mu.double(), 0.0, truth, eps=eps, backend="reference")
    (expected,) = torch.autograd.grad(z.sum(), truth)
    assert_close(by_z, expected, "dz/da", tolerance=2e-5 if dtype == torch.float32 else 1e-11)
    for a, measured, wanted in zip(LOGITS, by_z, expected, strict=True):
        tolerance = 1e-3 if dtype == torch.float32 else 1e-10
        assert_close(measured, wanted, f"dz/da at {a}", tolerance, floor=1e-30)


@DTYPES
@PER_STEP
def test_log_scales_of_any_size(backend: str, dtype: torch.dtype, per_step: bool) -> None:
    values = (-40.0, -20.0, 0.0, 20.0, 40.0)
    d = 8
    case = Case(
        torch.randn(5, d, dtype=dtype, generator=torch.Generator().manual_seed(0)),
        _parameters(values, d, per_step, dtype),
        torch.full((5, d - 1 if per_step else 1), 0.7, dtype=dtype),
        True,
        options={"key": (1, 1), "num_samples": None},
    )
    outputs = results(case, backend, torch.ones_like(case.mu), torch.ones(5, dtype=dtype))
    truth = results(case.truth(), "reference", torch.ones(5, d).double(), torch.ones(5).double())
    for name, value in outputs.items():
        assert value.isfinite().all(), name
        for row in range(5):
            tolerance = 1e-4 if dtype == torch.float32 else 1e-11
            assert_close(value[row], truth[name][row], f"{name}, log_s = {values[row]}", tolerance, floor=1.0)


@DTYPES
def test_log_density_of_saturated_chains(backend: str, dtype: torch.dtype) -> None:
    """What a posterior asks for: the density, and its gradients, at a point of the chain itself."""
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    mu = torch.zeros(len(LOGITS), 6, dtype=dtype, requires_grad=True)
    log_s = torch.zeros(len(LOGITS), dtype=dtype, requires_grad=True)
    z = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, logits, key=(1, 1), backend=backend)[0].detach()
    log_prob = rhovae_ext.ar1_log_prob_with_logits(z, mu, log_s, logits, backend=backend)
    assert log_prob.isfinite().all()
    for grad in torch.autograd.grad(log_prob.sum(), (mu, log_s, logits)):
        assert grad.isfinite().all()


@DTYPES
@PER_STEP
@pytest.mark.parametrize("invalid", [1.0, -1.0, 1.5, -7.0, math.inf, math.nan])
def test_invalid_rho_stays_in_its_row(
    backend: str, dtype: torch.dtype, per_step: bool, invalid: float
) -> None:
    rows, d, bad = 5, 20, 2
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(rows, d, dtype=dtype, generator=generator)
    rho = torch.full((rows, d - 1 if per_step else 1), 0.6, dtype=dtype)
    case = Case(mu, torch.ones(rows, dtype=dtype), rho, options={"key": (1, 1), "num_samples": None})
    dz, dkl = torch.ones_like(mu), torch.ones(rows, dtype=dtype)
    clean = results(case, backend, dz, dkl)
    rho[bad, rho.shape[-1] // 2] = invalid
    spoilt = results(case, backend, dz, dkl)

    others = [row for row in range(rows) if row != bad]
    for name, value in spoilt.items():
        assert torch.equal(value[others], clean[name][others]), name
    after = d // 2 if per_step else 1
    assert spoilt["z"][bad, after:].isnan().all()
    assert spoilt["kl"][bad].isnan()
    assert spoilt["drho"][bad].isnan().any()
    log_prob = rhovae_ext.ar1_log_prob(mu, mu.zero_(), 1.0, rho, backend=backend)
    assert log_prob[bad].isnan()
    assert log_prob[others].isfinite().all()


@pytest.mark.parametrize("name", ["mu", "scale", "rho"])
@pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
@PER_STEP
def test_nan_stays_in_its_row(backend: str, per_step: bool, logits: bool, name: str) -> None:
    rows, bad = 5, 2
    for dtype in (torch.float32, torch.bfloat16):
        for d in (3, 10, 70):
            generator = torch.Generator().manual_seed(0)
            inputs = {
                "mu": torch.randn(rows, d, generator=generator).to(dtype),
                "scale": torch.full((rows, d if per_step else 1), 0.5, dtype=dtype),
                "rho": torch.full((rows, d - 1 if per_step else 1), 0.5, dtype=dtype),
            }
            mu, scale, rho = inputs.values()
            case = Case(mu, scale, rho, logits, options={"key": (1, 1), "num_samples": 2})
            dz, dkl = torch.ones(2, rows, d, dtype=dtype), torch.ones(rows)
            clean = results(case, backend, dz, dkl)
            inputs[name][bad, 0] = math.nan
            spoilt = results(case, backend, dz, dkl)
            others = [row for row in range(rows) if row != bad]
            assert torch.equal(spoilt["z"][:, others], clean["z"][:, others])
            for output in ("kl", "dmu", "dscale", "drho"):
                assert torch.equal(spoilt[output][others], clean[output][others]), output
            assert spoilt["kl"][bad].isnan()


def test_rho_has_no_effect_on_a_chain_of_one(backend: str) -> None:
    for rho in (0.3, 1.0, 5.0, math.nan):
        given = torch.full((4,), rho, requires_grad=True)
        mu = torch.zeros(4, 1)
        z, kl = rhovae_ext.ar1_reparam_kl(mu, 0.5, given, key=(1, 1), backend=backend)
        log_prob = rhovae_ext.ar1_log_prob(z, mu, 0.5, given, backend=backend)
        free_z, free_kl = rhovae_ext.ar1_reparam_kl(mu, 0.5, 0.0, key=(1, 1), backend=backend)
        assert torch.equal(z, free_z)
        assert torch.equal(kl, free_kl)
        (grad,) = torch.autograd.grad(z.sum() + kl.sum() + log_prob.sum(), given)
        assert torch.equal(grad, torch.zeros(4))
