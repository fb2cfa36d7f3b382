"""In an autocast region types may be mixed, as torch's own operations take them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import rhovae_ext

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _inputs(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (3, 7), (3, 1), (3, 6), (3, 7)
    mu, log_s, rho_logit, z = (torch.randn(*shape, generator=generator).to(device) for shape in shapes)
    return mu, log_s, rho_logit, z


@pytest.mark.parametrize("types", list(itertools.product(TYPES, TYPES, TYPES)), ids=str)
def test_mixed_types_are_promoted(backend: str, device: str, types: tuple[torch.dtype, ...]) -> None:
    given = [x.to(t).requires_grad_() for x, t in zip(_inputs(device), (*types, types[0]), strict=True)]
    mu, log_s, rho_logit, z = given
    eps = torch.ones(3, 7, device=device, dtype=types[1])
    with torch.autocast(device, dtype=torch.bfloat16):
        sample, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, key=1, backend=backend)
        rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, eps=eps, backend=backend)
        density = rhovae_ext.ar1_log_prob_with_logits(z, mu, log_s, rho_logit, backend=backend)
        (sample.float().sum() + kl.sum() + density.sum()).backward()
    assert sample.dtype is types[0]
    assert kl.dtype is density.dtype is torch.float32
    wide = [x.detach().double().requires_grad_() for x in given]
    truth = rhovae_ext.ar1_log_prob_with_logits(wide[3], *wide[:3], backend="reference")
    torch.testing.assert_close(density.double(), truth, rtol=1e-4, atol=1e-3)
    for x in given:
        assert x.grad is not None
        assert x.grad.dtype is x.dtype


@pytest.mark.parametrize("of_point", TYPES)
@pytest.mark.parametrize("of_parameters", TYPES)
def test_a_point_of_another_type(
    backend: str, device: str, of_point: torch.dtype, of_parameters: torch.dtype
) -> None:
    *parameters, z = _inputs(device)
    parameters, z = [x.to(of_parameters) for x in parameters], z.to(of_point)
    with torch.autocast(device, dtype=torch.bfloat16):
        density = rhovae_ext.ar1_log_prob_with_logits(z, *parameters, backend=backend)
    truth = rhovae_ext.ar1_log_prob_with_logits(
        z.double(), *(x.double() for x in parameters), backend="reference"
    )
    torch.testing.assert_close(density.double(), truth, rtol=1e-5, atol=1e-4)
    if of_point is not of_parameters:
        with pytest.raises(TypeError, match="z must be"):
            rhovae_ext.ar1_log_prob_with_logits(z, *parameters, backend=backend)


def test_float64_is_not_narrowed(backend: str, device: str) -> None:
    mu, log_s, rho_logit, _ = _inputs(device)
    with (
        torch.autocast(device, dtype=torch.bfloat16),
        pytest.raises(TypeError, match="log_s must be float32"),
    ):
        rhovae_ext.ar1_kl_with_logits(mu, log_s.double(), rho_logit, backend=backend)
