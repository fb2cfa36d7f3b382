"""No speed is reported while the kernel is wrong: a small case against the dense factor comes first."""

from __future__ import annotations

import torch
from torch import Tensor

import rhovae_ext

ROWS, STEPS = 7, 37
TOLERANCE = 2e-5  # of the largest value, float32


def _dense(mu: Tensor, log_s: Tensor, rho_logit: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """z and KL from the d x d Cholesky factor: no recurrence in it."""
    steps = torch.arange(STEPS)
    correlation = rho_logit.tanh()[:, None, None] ** (steps[:, None] - steps).abs()
    factor = torch.linalg.cholesky(log_s.exp().square()[:, None, None] * correlation)
    z = mu + (factor @ eps[..., None])[..., 0]
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(STEPS, dtype=mu.dtype), torch.eye(STEPS, dtype=mu.dtype)
    )
    posterior = torch.distributions.MultivariateNormal(mu, scale_tril=factor)
    return z, torch.distributions.kl_divergence(posterior, prior)


def _differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        float((ours.double() - truth).abs().max() / truth.abs().max())
        for ours, truth in zip(found, expected, strict=True)
    ]


def refuse_if_wrong(backend: str) -> None:
    """Compares z, KL and every gradient of both forms; stops the benchmark where one is off."""
    generator = torch.Generator().manual_seed(3)
    mu, eps, dz = (torch.randn(ROWS, STEPS, generator=generator, dtype=torch.float64) for _ in range(3))
    log_s, rho_logit, dkl = (
        0.5 * torch.randn(ROWS, generator=generator, dtype=torch.float64) for _ in range(3)
    )

    def with_gradients(outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
        gradients = torch.autograd.grad(outputs, inputs, (dz.to(outputs[0].dtype), dkl.to(outputs[1].dtype)))
        return [*(output.detach() for output in outputs), *gradients]

    def leaves(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(value.to(dtype).requires_grad_() for value in (mu, log_s, rho_logit))  # type: ignore[return-value]

    exact, single = leaves(torch.float64), leaves(torch.float32)
    truth = with_gradients(_dense(*exact, eps), exact)
    logits = rhovae_ext.ar1_reparam_kl_with_logits(*single, eps=eps.float(), backend=backend)
    natural = rhovae_ext.ar1_reparam_kl(
        single[0], single[1].exp(), single[2].tanh(), eps=eps.float(), backend=backend
    )
    for form, outputs in (("with logits", logits), ("natural", natural)):
        worst = max(_differences(with_gradients(outputs, single), truth))
        if not worst <= TOLERANCE:
            raise SystemExit(
                f"No speed is reported while the kernel is wrong: ar1_reparam_kl ({form}, backend {backend})"
                f" is {worst:.1e} of the largest value off the dense factor, allowed is {TOLERANCE:.0e}."
                " Run: make test"
            )

    key = (5, 6)
    drawn = rhovae_ext.ar1_reparam(single[0].detach(), 1.0, 0.0, key=key, backend=backend)
    plain = rhovae_ext.ar1_reparam(single[0].detach(), 1.0, 0.0, key=key, backend="reference")
    if not (drawn - plain).abs().max() <= 1e-4:
        raise SystemExit(f"No speed is reported while the noise is wrong (backend {backend}). Run: make test")
