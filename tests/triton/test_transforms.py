"""The transforms of PyTorch over the Triton ops, compared with the reference: vmap, derivatives of the second
order and forward, keys by row, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rhovae_ext
from rhovae_ext import split
from tests.triton.conftest import DEVICE

grad: Callable[..., Any] = torch.func.grad
vmap: Callable[..., Any] = torch.func.vmap


def _loss(backend: str) -> Callable[..., Tensor]:
    def loss(mu: Tensor, log_s: Tensor, rho_logit: Tensor, key: Any = 3) -> Tensor:
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, key=key, backend=backend)
        log_q = rhovae_ext.ar1_log_prob_with_logits(z, mu, 0.5 * log_s, rho_logit, backend=backend)
        return z.sin().sum() + kl.square().sum() + log_q.cos().sum()

    return loss


def _chains(*lead: int, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d)
    shapes = (*lead, d), (*lead, 1), (*lead, d - 1)
    mu, log_s, rho_logit = (
        (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.6).to(DEVICE) for shape in shapes
    )
    return mu, log_s, rho_logit


def assert_equal(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_gradients_for_every_item() -> None:
    inputs, keys = _chains(4), split(1, 4).to(DEVICE)
    found = vmap(grad(_loss("triton"), (0, 1, 2)))(*inputs, keys)
    assert_equal(found, vmap(grad(_loss("reference"), (0, 1, 2)))(*inputs, keys))
    mu, log_s, rho_logit = inputs[0], inputs[1][0], inputs[2][0]
    shared = vmap(grad(_loss("triton")), in_dims=(0, None, None, 0))(mu, log_s, rho_logit, keys)
    assert_equal(shared[1], grad(_loss("triton"))(mu[1], log_s, rho_logit, keys[1]))


def test_higher_derivatives() -> None:
    inputs = _chains(2, d=3)
    assert_equal(
        torch.func.hessian(_loss("triton"), (0, 1, 2))(*inputs),
        torch.autograd.functional.hessian(_loss("reference"), inputs),
    )
    assert_equal(
        torch.autograd.functional.hessian(_loss("triton"), inputs),
        torch.autograd.functional.hessian(_loss("reference"), inputs),
    )


@pytest.mark.parametrize("samples", [None, 2])
def test_rows_with_keys_of_their_own(samples: int | None) -> None:
    inputs = [x.requires_grad_() for x in _chains(3, 2, d=40)]
    keys = split(5, 3)[:, None].to(DEVICE)
    results = []
    for backend in ("triton", "reference"):
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*inputs, key=keys, num_samples=samples, backend=backend)
        results.append((z, *torch.autograd.grad(z.square().sum() + kl.sum(), inputs)))
    assert_equal(*results)


def test_checkpoints() -> None:
    inputs = [x.requires_grad_() for x in _chains(3)]
    expected = torch.autograd.grad(_loss("triton")(*inputs), inputs)
    again = checkpoint(_loss("triton"), *inputs, use_reentrant=False)
    assert_equal(torch.autograd.grad(again, inputs), expected)
