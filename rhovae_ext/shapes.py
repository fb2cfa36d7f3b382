"""The shape rule: ranks decide what a parameter is, never sizes, so a batch as long as d changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def broadcast(*shapes: Sequence[int]) -> list[int]:
    """The shape that the shapes broadcast to; RuntimeError where they do not."""
    return list(torch.broadcast_shapes(*shapes))


def arithmetic_dtype(mu: Tensor) -> torch.dtype:
    """What the arithmetic, the KL and the log-density are in: float64 for float64, else float32."""
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """float64, for what takes differences of numbers that nearly agree; what a device has instead of it."""
    return torch.float32 if any(tensor.device.type == "mps" for tensor in tensors) else torch.float64


def parameter_leading(parameter: Tensor, mu: Tensor) -> torch.Size:
    """Leading axes of a scale or rho: all of them for one value per row, else all but the last."""
    return parameter.shape if parameter.dim() == mu.dim() - 1 else parameter.shape[:-1]


def align_parameter(parameter: Tensor, mu: Tensor) -> Tensor:
    """The parameter with a last axis that broadcasts along the chain."""
    if parameter.dim() == 0:
        return parameter.reshape(1)
    return parameter.unsqueeze(-1) if parameter.dim() == mu.dim() - 1 else parameter


def broadcast_leading(mu: Tensor, scale: Tensor, rho: Tensor) -> list[int]:
    """The leading axes of z (without samples) and of the KL per row."""
    return broadcast(mu.shape[:-1], parameter_leading(scale, mu), parameter_leading(rho, mu))
