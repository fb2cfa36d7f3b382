"""Shapes, strides and options drawn by hypothesis, against the recurrence step by step in float64."""

from __future__ import annotations

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import rhovae_ext
from tests.ext.cases import Case, cotangents, results, with_eps
from tests.ext.compare import TOLERANCE, assert_close
from tests.ext.dense import per_step

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A call whose operands each lose some leading axes to 1, on some strides."""
    dtype = draw(st.sampled_from(DTYPES))
    lead = draw(st.lists(st.integers(1, 4), max_size=3))
    d = draw(st.integers(1, 70) | st.integers(150, 330))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def operand(last: int, low: float, high: float, own: torch.dtype) -> Tensor:
        kept = [size if draw(st.booleans()) else 1 for size in lead]
        spare = draw(st.integers(0, 2))
        values = low + (high - low) * torch.rand(*kept, last + spare, generator=generator)
        values = values.to(own)[..., spare:]
        order = draw(st.permutations(range(len(lead))))
        if draw(st.booleans()):
            back = [order.index(axis) for axis in range(len(lead))]
            values = values.permute(*order, len(lead)).contiguous().permute(*back, len(lead))
        return values.expand(*lead, last) if draw(st.booleans()) else values

    def parameter(steps: int, low: float, high: float) -> Tensor | float:
        own = draw(st.sampled_from((dtype, torch.float32)))
        form = draw(st.sampled_from(("number", "zero_dim", "row", "kept", "step")))
        if form in ("number", "zero_dim"):
            value = torch.empty(()).uniform_(low, high, generator=generator).to(own)
            return float(value) if form == "number" else value
        values = operand(steps if form == "step" else 1, low, high, own)
        return values[..., 0] if form == "row" else values

    logits = draw(st.booleans())
    bounds = ((-1.0, 1.0), (-1.5, 1.5)) if logits else ((0.4, 2.5), (-0.9, 0.9))
    options = {
        "key": (draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1))),
        "row_offset": draw(st.integers(0, 2**63 - 1)),
        "num_samples": draw(st.sampled_from((None, 1, 3))),
    }
    case = Case(
        operand(d, -1.5, 1.5, dtype),
        parameter(d, *bounds[0]),
        parameter(d - 1, *bounds[1]),
        logits,
        draw(st.booleans()),
        options,
    )
    return with_eps(case) if draw(st.booleans()) else case


def recurrence(case: Case) -> tuple[Tensor, Tensor]:
    """z and the KL of every step, one step after the other, from `eps` in the case's options."""
    mu = case.mu
    scale, rho = (torch.as_tensor(value, dtype=torch.float64) for value in (case.scale, case.rho))
    if case.logits:
        scale, rho = scale.exp(), rho.tanh()
    mu, s, rho = per_step(mu, scale, rho)
    eps = case.options["eps"]
    x = [eps[..., 0]]
    for k in range(1, mu.shape[-1]):
        x.append(rho[..., k - 1] * x[-1] + torch.sqrt(1 - rho[..., k - 1] ** 2) * eps[..., k])
    kl = [0.5 * (s**2 + mu**2 - 1 - 2 * torch.log(s))]
    tied = torch.nn.functional.pad(-0.5 * torch.log(1 - rho**2), (1, 0))
    return mu + s * torch.stack(x, -1), kl[0] + tied


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_sampling(backend: str, case: Case) -> None:
    dz, dkl = cotangents(case)
    actual = results(case, backend, dz, dkl)
    truth = case.truth().leaves()
    z, per_dim = recurrence(truth)
    kl = per_dim if case.per_dim else per_dim.sum(-1)
    names = list(truth.inputs)
    grads = torch.autograd.grad(
        (z, kl), list(truth.inputs.values()), (dz.double(), dkl.double()), allow_unused=True
    )
    expected = {"z": z, "kl": kl} | {f"d{name}": g for name, g in zip(names, grads, strict=True)}
    for name, value in actual.items():
        wanted = expected[name]
        # The truth of a chain of one step does not know rho.
        wanted = torch.zeros_like(value, dtype=torch.float64) if wanted is None else wanted
        terms = max(1.0, math.sqrt(z.numel() / max(wanted.numel(), 1)))
        limit = 2 * TOLERANCE[value.dtype]
        if case.mu.dtype == torch.float64 and value.dtype == torch.float64:
            limit = 1e-11
        assert_close(value, wanted.detach(), name, tolerance=limit, floor=terms)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_log_prob(backend: str, case: Case) -> None:
    """log q at a sample is the density of its noise less the logarithm of the Jacobian."""
    case = case.truth()
    z, _ = case.call("reference")
    function = rhovae_ext.ar1_log_prob_with_logits if case.logits else rhovae_ext.ar1_log_prob
    actual = function(z, case.mu, case.scale, case.rho, backend=backend)
    scale, rho = (torch.as_tensor(value, dtype=torch.float64) for value in (case.scale, case.rho))
    if case.logits:
        scale, rho = scale.exp(), rho.tanh()
    _, s, rho = per_step(case.mu, scale, rho)
    noise = torch.distributions.Normal(0.0, 1.0).log_prob(case.options["eps"]).sum(-1)
    expected = noise - s.log().sum(-1) - 0.5 * torch.log(1 - rho**2).sum(-1)
    assert_close(actual, expected, "log_prob", tolerance=1e-11, floor=1.0)
