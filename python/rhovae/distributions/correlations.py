"""Correlations held as logits, ``rho = tanh(a)``: products of them without loss where rho rounds to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from rhovae_ext.correlation import log_cosh, sign
from rhovae_ext.shapes import widest_dtype

# Past this |logit| the hyperbolic functions would overflow when squared, and rho is 1 to every digit.
LARGEST_LOGIT = {torch.float32: 40.0, torch.float64: 300.0}


def total(values: Tensor) -> Tensor:
    """The sum over the last axis, which keeps its digits however long that is."""
    return values.sum(-1, dtype=widest_dtype(values)).to(values.dtype)


def tanh(a: Tensor) -> Tensor:
    """``tanh a`` whose derivatives keep their digits where it rounds to 1 (autograd has 1 - tanh(a)^2)."""
    near = a.abs() < 1
    size = torch.where(near, 1.0, sign(a) * a)
    q = torch.exp(-2.0 * size)
    return torch.where(near, torch.tanh(torch.where(near, a, 0.0)), sign(a) * (1.0 - q) / (1.0 + q))


def bounded(logits: Tensor) -> Tensor:
    """Logits whose sinh and cosh can still be squared."""
    limit = LARGEST_LOGIT[logits.dtype]
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
