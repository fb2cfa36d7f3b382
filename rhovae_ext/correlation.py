"""Correlations as logits, ``rho = tanh(a)``, in plain PyTorch: no digit lost next to 0 or where rho is 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inside(rho: Tensor) -> Tensor:
    """NaN where |rho| >= 1. Added, not selected: the gradient there has to be NaN as well and not zero."""
    return rho + torch.where(rho.abs() < 1, 0.0, math.nan).to(rho.dtype)


def sign(a: Tensor) -> Tensor:
    """1 or -1: ``sign(a) * a`` is |a|, and formulas in it stay differentiable at 0."""
    return torch.where(a < 0, -1.0, 1.0).to(a.dtype)


def held(x: Tensor, bound: float) -> Tensor:
    """x within [-bound, bound], NaN as it is. (ONNX's optimiser loses one of two clamps of a tensor.)"""
    return torch.where(x > bound, bound, torch.where(x < -bound, -bound, x))


# Of exponentials: ONNX Runtime has neither in float64.


def _sinh(x: Tensor) -> Tensor:
    grown = torch.expm1(x)
    return 0.5 * grown * (grown + 2.0) / (grown + 1.0)


def cosh(x: Tensor) -> Tensor:
    return 0.5 * (torch.exp(x) + torch.exp(-x))


def log_cosh(a: Tensor) -> Tensor:
    """``log cosh a = -1/2 log(1 - tanh(a)^2)``, finite wherever a is, with every digit where it is small."""
    near = a.abs() < 1
    size = torch.where(near, 1.0, sign(a) * a)
    far = size + torch.log1p(torch.exp(-2.0 * size)) - math.log(2.0)
    return torch.where(near, torch.log1p(2.0 * _sinh(0.5 * torch.where(near, a, 0.0)).square()), far)


def innovation(now: Tensor, before: Tensor, logit: Tensor, largest: float) -> Tensor:
    """``(now - rho before) / sqrt(1 - rho^2)`` with rho = tanh(logit), keeping 1 - |rho| exact.

    As (now -+ before) +- (1 - |rho|) before, times cosh. Past the largest |logit| the cosh is held: the
    innovation has no digits left there, but stays finite, and so do its gradients.
    """
    size = sign(logit) * logit
    q, aligned = torch.exp(-2.0 * size), sign(logit) * before
    return ((now - aligned) + aligned * (2.0 * q / (1.0 + q))) * cosh(held(size, largest))
