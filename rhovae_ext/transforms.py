"""PyTorch's transforms of the ops: rules for vmap, and the same in torch's own operations for all else.

vmap of an op is one call for the whole batch: the batch becomes one more leading axis, in front. A key that
the slices share, or that each has of its own, is given to each row of that axis, so that every slice has the
noise that it would have alone. Forward-mode and second derivatives, export and other compilers go through
`reference`: the compiled module calls it as `rhovae::plain_*` where tangents come, or a graph of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import native, reference

_PLAIN: dict[str, Callable[..., Any]] = {
    "ar1": reference.ar1,
    "ar1_backward": reference.ar1_backward,
    "ar1_log_prob": reference.ar1_log_prob,
    "ar1_log_prob_backward": reference.ar1_log_prob_backward,
}
_IMPLEMENTATIONS = ("", "triton_")


def draw_key(like: Tensor, generator: torch.Generator | None = None, *, on_device: bool = False) -> Tensor:
    """A key by torch's own random op, which vmap's `randomness`, export and other compilers know.

    Of 16 bits at a time: that many are random wherever integers are made from a float32 between 0 and 1.
    """
    options: dict[str, Any] = {"device": like.device}
    if generator is not None:
        options["generator"] = generator
    first, second, third, fourth = torch.randint(0, 1 << 16, (4, 2), **options).unbind()
    return first + (second << 16) + (third << 32) + (fourth << 48)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The ops in torch's own operations: a table for `ExportedProgram.run_decompositions` and compilers.

    With it an exported program needs this package no more. Draws then go through `torch.randint`, so noise
    that no key decides differs from the kernels'; z, the KL and densities agree to rounding.

    Returns:
        Callables by op; empty where the compiled module is not loaded, as there are no ops then.
    """
    if native.unavailable is not None:
        return {}
    table = {
        getattr(torch.ops.rhovae, prefix + name).default: plain
        for prefix in _IMPLEMENTATIONS
        for name, plain in _PLAIN.items()
    }
    return {**table, torch.ops.rhovae.draw_key.default: draw_key}


class _Batch:
    """The arguments of an op with vmap's axis in front, ranks made equal so that leading axes line up."""

    def __init__(self, size: int, **tensors: tuple[Tensor, int | None]) -> None:
        self.size = size
        self.shapes = {name: _without(dim, tensor.shape) for name, (tensor, dim) in tensors.items()}
        of_mu = len(self.shapes["mu"])
        axes = {name: _with_last_axis(shape, of_mu) for name, shape in self.shapes.items()}
        self.rank = max(len(shape) for shape in axes.values())
        self.tensors = {name: self._along(tensor, dim, axes[name]) for name, (tensor, dim) in tensors.items()}

    def _along(self, tensor: Tensor, dim: int | None, axes: list[int]) -> Tensor:
        front = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        padded = [1] * (self.rank - len(axes)) + axes
        return front.reshape(-1, *padded).expand(self.size, *padded)

    def key(self, key: Tensor | None, dim: int | None) -> Tensor | None:
        """(B, *lead or ones, 2): rows are numbered within their slice."""
        if key is None:
            return None
        return self._along(key, dim, _without(dim, key.shape))

    def whole(self, tensor: Tensor | None, dim: int | None, at: int = 0) -> Tensor | None:
        """What has a value for every slice, with the batch's axis at `at`."""
        if tensor is None:
            return None
        if dim is not None:
            return tensor.movedim(dim, at)
        shape = list(tensor.shape)
        return tensor.unsqueeze(at).expand(*shape[:at], self.size, *shape[at:])

    def own(self, name: str, gradient: Tensor) -> Tensor:
        """A gradient of the padded argument in the shape of the argument."""
        return gradient.reshape(self.size, *self.shapes[name])


def _without(dim: int | None, shape: torch.Size) -> list[int]:
    return [size for axis, size in enumerate(shape) if axis != dim]


def _with_last_axis(shape: list[int], rank_of_mu: int) -> list[int]:
    """One value per row gets the last axis that its rank left out."""
    return [*shape, 1] if len(shape) < rank_of_mu else shape


def _ar1(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    mu, scale, rho, key, eps, num_samples, row_offset, logits, sample, kl = args
    batch = _Batch(info.batch_size, mu=(mu, in_dims[0]), scale=(scale, in_dims[1]), rho=(rho, in_dims[2]))
    at = 0 if num_samples is None else 1
    noise = batch.key(key, in_dims[3]), batch.whole(eps, in_dims[4], at)
    out = op(*batch.tensors.values(), *noise, num_samples, row_offset, logits, sample, kl)
    return out, (at if sample else None, 0 if kl else None)


def _ar1_backward(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    dz, dkl, mu, scale, rho, key, eps, num_samples, row_offset, logits, kl, needs_deps = args
    batch = _Batch(info.batch_size, mu=(mu, in_dims[2]), scale=(scale, in_dims[3]), rho=(rho, in_dims[4]))
    at = 0 if num_samples is None else 1
    by = batch.whole(dz, in_dims[0], at), batch.whole(dkl, in_dims[1])
    noise = batch.key(key, in_dims[5]), batch.whole(eps, in_dims[6], at)
    dmu, dscale, drho, deps = op(
        *by, *batch.tensors.values(), *noise, num_samples, row_offset, logits, kl, needs_deps
    )
    out = batch.own("mu", dmu), batch.own("scale", dscale), batch.own("rho", drho), deps
    return out, (0, 0, 0, at if needs_deps else None)


def _ar1_log_prob(op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    z, mu, scale, rho, logits = args
    batch = _density(info, in_dims, z, mu, scale, rho)
    return op(*batch.tensors.values(), logits), 0


def _ar1_log_prob_backward(
    op: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[Any, Any]:
    dlog_prob, z, mu, scale, rho, logits = args
    batch = _density(info, in_dims[1:], z, mu, scale, rho)
    gradients = op(batch.whole(dlog_prob, in_dims[0]), *batch.tensors.values(), logits)
    names = batch.tensors
    return tuple(batch.own(name, by) for name, by in zip(names, gradients, strict=True)), (0, 0, 0, 0)


def _density(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> _Batch:
    named = zip(("z", "mu", "scale", "rho"), zip(tensors, in_dims, strict=False), strict=True)
    return _Batch(info.batch_size, **dict(named))


_VMAP: dict[str, Callable[..., tuple[Any, Any]]] = {
    "ar1": _ar1,
    "ar1_backward": _ar1_backward,
    "ar1_log_prob": _ar1_log_prob,
    "ar1_log_prob_backward": _ar1_log_prob_backward,
}

if native.unavailable is None:
    _library = torch.library.Library("rhovae", "IMPL")
    _library.impl("draw_key", draw_key, "FuncTorchVmapMode")
    for _name, _plain in _PLAIN.items():
        _library.impl(f"plain_{_name}", _plain, "CompositeImplicitAutograd")
    for _prefix in _IMPLEMENTATIONS:
        for _name, _rule in _VMAP.items():
            _op = getattr(torch.ops.rhovae, _prefix + _name).default
            torch.library.register_vmap(_op, partial(_rule, _op), lib=_library)
