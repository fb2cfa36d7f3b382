"""Correlations held as logits, ``rho = tanh(a)``: products of them without loss where rho rounds to 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Past this |logit| the hyperbolic functions would overflow when squared, and rho is 1 to every digit.
_LARGEST_LOGIT = {torch.float32: 40.0, torch.float64: 300.0}


def magnitude(a: Tensor) -> Tensor:
    """``|a|``, whose gradient at 0 is that of the branch a >= 0: formulas in it stay differentiable there."""
    return torch.where(a >= 0, a, -a)


def log_cosh(a: Tensor) -> Tensor:
    """``log cosh a = -1/2 log(1 - tanh(a)^2)``, finite wherever a is."""
    size = magnitude(a)
    return size + torch.log1p(torch.exp(-2.0 * size)) - math.log(2.0)


def bounded(logits: Tensor) -> Tensor:
    """Logits whose sinh and cosh can still be squared."""
    limit = _LARGEST_LOGIT[logits.dtype]
    return logits.clamp(-limit, limit)


def chain_logit(a: Tensor, b: Tensor) -> Tensor:
    """The logit of a product of correlations, ``atanh(tanh(a) tanh(b)) = 1/2 log(cosh(a+b) / cosh(a-b))``."""
    return 0.5 * (log_cosh(a + b) - log_cosh(a - b))


def cumulative_logits(logits: Tensor) -> Tensor:
    """Logits of the correlations with the first step: running products along the last axis, by doubling."""
    reach = 1
    while reach < logits.shape[-1]:
        joined = chain_logit(logits[..., reach:], logits[..., :-reach])
        logits = torch.cat((logits[..., :reach], joined), dim=-1)
        reach *= 2
    return logits


def cumulative_correlations(rho: Tensor) -> Tensor:
    """The lower half of the correlation matrix, ``R[i, j] = rho_j ... rho_{i-1}`` for i >= j, zero above.

    Shape: ``(..., d-1)`` to ``(..., d, d)``.
    """
    d = rho.shape[-1] + 1
    below = torch.ones(d, d, dtype=torch.bool, device=rho.device).tril(-1)
    # row i of the factors is rho_{i-1} left of the diagonal, else 1; the product runs down the columns
    steps = torch.nn.functional.pad(rho, (1, 0), value=1.0).unsqueeze(-1)
    return torch.where(below, steps, 1.0).cumprod(-2).tril()
