"""The same tensor in memory as callers leave it: transposed, sliced, expanded, windowed, beside garbage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Generator = np.random.Generator


def _permuted(rng: Generator, values: Tensor) -> Tensor:
    order = rng.permutation(values.dim()).tolist()
    return values.permute(order).contiguous().permute(np.argsort(order).tolist())


def _sliced(rng: Generator, values: Tensor) -> Tensor:
    """Every second or third element of something larger, whose others are NaN."""
    # On two axes at most, or the larger thing grows without bounds.
    chosen = rng.permutation(values.dim()) < 2
    steps = np.where(chosen, rng.integers(1, 4, values.dim()), 1)
    before, after = (np.where(chosen, rng.integers(0, 3, values.dim()), 0) for _ in range(2))
    sizes = [int(b + n * s + a) for n, s, b, a in zip(values.shape, steps, before, after, strict=True)]
    garbage = float("nan") if values.is_floating_point() else 2**63 - 1
    whole = torch.full(sizes, garbage, dtype=values.dtype)
    index = tuple(
        slice(int(b), int(b + n * s), int(s)) for n, s, b in zip(values.shape, steps, before, strict=True)
    )
    return whole[index].copy_(values)


def _expanded(rng: Generator, values: Tensor) -> Tensor:
    """Axes whose values are all the same one."""
    shape = values.shape
    for axis in range(values.dim()):
        if shape[axis] > 1 and rng.random() < 0.5:
            values = values.narrow(axis, 0, 1)
    return _sliced(rng, values).expand(shape)


def _windows(rng: Generator, values: Tensor) -> Tensor:
    """Strides of 0 to 3 elements on every axis: neighbours share their memory."""
    strides = rng.integers(0, 4, values.dim()).tolist()
    reach = 1 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
    pool = values.reshape(-1)
    if not 1 <= reach <= pool.numel():
        return values
    return pool.clone().as_strided(values.shape, strides)


def laid_out(rng: Generator, values: Tensor) -> Tensor:
    """`values` (or, where memory is shared, some of them) in a layout drawn at random."""
    if values.dim() == 0 or values.dtype is torch.uint64:
        return values
    kind = rng.choice(("plain", "permuted", "sliced", "both", "expanded", "windows"), p=(4 / 9, *[1 / 9] * 5))
    if kind == "permuted":
        return _permuted(rng, values)
    if kind == "sliced":
        return _sliced(rng, values)
    if kind == "both":
        return _sliced(rng, _permuted(rng, values)) if rng.random() < 0.5 else _permuted_slices(rng, values)
    if kind == "expanded":
        return _expanded(rng, values)
    return _windows(rng, values) if kind == "windows" else values


def _permuted_slices(rng: Generator, values: Tensor) -> Tensor:
    order = rng.permutation(values.dim()).tolist()
    return _sliced(rng, values.permute(order)).permute(np.argsort(order).tolist())
