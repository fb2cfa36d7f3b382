"""Batches without rows and chains of one step, through every function: values and gradients have shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rhovae_ext as R


def _gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    total = sum((output.sum() for output in outputs), torch.zeros((), device=inputs[0].device))
    for gradient, given in zip(
        torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True), inputs, strict=True
    ):
        assert gradient is None or gradient.shape == given.shape
        assert gradient is None or not given.numel() or gradient.isfinite().all()


def check_every_function(backend: str, device: str, lead: tuple[int, ...], d: int, kind: str) -> None:
    def leaf(*shape: int, value: float) -> Tensor:
        return torch.full(shape, value, device=device, requires_grad=True)

    mu = leaf(*lead, d, value=0.5)
    shapes = {
        "step": ((*lead, d), (*lead, d - 1)),
        "row": (lead, lead),
        "shared": ((1,) * len(lead) + (d,), ()),
    }
    s, rho = (leaf(*shape, value=0.5) for shape in shapes[kind])
    for samples in (None, 3):
        for per_dim in (False, True):
            z, kl = R.ar1_reparam_kl(mu, s, rho, num_samples=samples, per_dim=per_dim, backend=backend)
            assert z.shape == (*([] if samples is None else [samples]), *lead, d)
            assert kl.shape == ((*lead, d) if per_dim else lead)
            _gradients((z, kl), (mu, s, rho))
            _gradients((kl,), (mu, s, rho))
        eps = leaf(*z.shape, value=1.0)
        _gradients(
            (R.ar1_reparam(mu, s, rho, num_samples=samples, eps=eps, backend=backend),), (mu, s, rho, eps)
        )
        z = leaf(*z.shape, value=1.0)
        log_prob = R.ar1_log_prob(z, mu, s, rho, backend=backend)
        assert log_prob.shape == z.shape[:-1]
        _gradients((log_prob,), (z, mu, s, rho))
        _gradients((R.ar1_log_prob_with_logits(z, mu, s, rho, backend=backend),), (z, mu, s, rho))
    if kind != "row":
        _gradients((R.ar1_entropy(s, rho),), (s, rho))


@pytest.mark.parametrize("kind", ["step", "row", "shared"])
@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0), (2,), ()], ids=str)
@pytest.mark.parametrize("d", [1, 2, 400])
def test_every_function(backend: str, device: str, lead: tuple[int, ...], d: int, kind: str) -> None:
    check_every_function(backend, device, lead, d, kind)


@pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
def test_a_chain_of_one_step_has_no_rho_whatever_comes_back(backend: str, logits: bool) -> None:
    """Its gradient is zero, also beside NaN in the other rows' and in its own."""
    for shape in ((), (3,), (3, 1)):
        mu = torch.tensor([[0.5], [float("nan")], [0.1]], requires_grad=True)
        rho = torch.full(shape, 0.3, requires_grad=True)
        sampler = R.ar1_reparam_kl_with_logits if logits else R.ar1_reparam_kl
        density = R.ar1_log_prob_with_logits if logits else R.ar1_log_prob
        z, kl = sampler(mu, 0.7, rho, key=1, backend=backend)
        log_q = density(z.detach(), mu, 0.7, rho, backend=backend)
        for out in (z.sum() * float("inf"), kl.sum() * float("nan"), log_q.sum() * float("nan")):
            (gradient,) = torch.autograd.grad(out, rho, retain_graph=True)
            assert torch.equal(gradient, torch.zeros(shape))
