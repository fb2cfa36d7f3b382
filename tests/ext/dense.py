"""The chain by dense linear algebra: its covariance written out, torch.distributions on top."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from rhovae_ext.shapes import align_parameter, broadcast_leading


def per_step(mu: Tensor, s: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mu (*lead, d), s (*lead, d) and rho (*lead, d-1), expanded."""
    lead, d = broadcast_leading(mu, s, rho), mu.shape[-1]
    s, rho = align_parameter(s, mu), align_parameter(rho, mu)
    rho = rho[..., :0] if d == 1 else rho
    return mu.expand(*lead, d), s.expand(*lead, d), rho.expand(*lead, d - 1)


def covariance(s: Tensor, rho: Tensor) -> Tensor:
    """C_ij = s_i s_j prod of rho between i and j, for s (..., d) and rho (..., d-1)."""
    d = s.shape[-1]
    correlation = torch.ones(*s.shape, d, dtype=s.dtype)
    for i in range(d):
        for j in range(d):
            if i != j:
                correlation[..., i, j] = rho[..., min(i, j) : max(i, j)].prod(-1)
    return s.unsqueeze(-1) * correlation * s.unsqueeze(-2)


def distribution(mu: Tensor, s: Tensor, rho: Tensor) -> MultivariateNormal:
    mu, s, rho = per_step(mu, s, rho)
    return MultivariateNormal(mu, covariance_matrix=covariance(s, rho))


def standard(mu: Tensor) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros_like(mu), torch.eye(mu.shape[-1], dtype=mu.dtype))
