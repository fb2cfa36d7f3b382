"""Chains in float64 with every kind of parameter, and the same written out as dense normals."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from rhovae.distributions import AR1Normal
from tests.ext import dense

BATCH = (4, 3)
# (scale, corr): a number; one per row; per channel, the last axis of the batch; per step for all rows; both
KINDS = [
    ("number", "number"),
    ("row", "row"),
    ("channel", "step"),
    ("vector", "channel"),
    ("step", "vector"),
    ("step", "step"),
    ("step", "zero"),
]


def parameters(kind: tuple[str, str], d: int, seed: int = 0) -> list[Tensor]:
    """loc, scale and corr as leaves that need gradients, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(what: str, steps: int) -> Tensor:
        shapes = {
            "number": (),
            "row": (*BATCH, 1),
            "channel": (BATCH[-1], 1),
            "vector": (steps,),
            "step": (*BATCH, steps),
            "zero": (),
        }
        return torch.randn(shapes[what], generator=generator, dtype=torch.float64)

    loc = draw("step", d)
    scale = (0.5 * draw(kind[0], d)).exp()
    corr = torch.tanh(draw(kind[1], d - 1)) * (kind[1] != "zero")
    return [p.detach().requires_grad_() for p in (loc, scale, corr)]


def truth(loc: Tensor, scale: Tensor, corr: Tensor) -> MultivariateNormal:
    """Entry by entry: s_i s_j times the product of the correlations between, all broadcast by torch."""
    ties = loc[..., 1:] if loc.shape[-1] > 1 else corr.new_zeros(*loc.shape[:-1], 0)
    loc, scale = torch.broadcast_tensors(loc, scale)
    corr = torch.broadcast_tensors(ties, corr)[1] if ties.shape[-1] else ties
    return MultivariateNormal(loc, covariance_matrix=dense.covariance(scale, corr))


def both(kind: tuple[str, str], d: int, seed: int = 0) -> tuple[AR1Normal, MultivariateNormal, list[Tensor]]:
    leaves = parameters(kind, d, seed)
    return AR1Normal(*leaves), truth(*leaves), leaves


def assert_same_with_gradients(mine: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random weighting of them by every leaf."""
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5), dtype=mine.dtype)
    gradients = [
        torch.autograd.grad(
            (weight * value).sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for value in (mine, theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
