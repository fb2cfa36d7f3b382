"""From tensors to what the kernels take: broadcasting, strides, and the space for gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..shapes import align_parameter, arithmetic_dtype, broadcast, broadcast_leading
from . import blocks
from .launch import LARGEST_TERM

_SAMPLED = ("eps", "dz")  # operands that may have an axis of samples
_ONE_OR_EACH = ("scale", "rho", "dkl")  # operands with a value for the row or one for each step
_VECTOR = 4  # elements read and written at once where every row begins at a multiple of that


def refuse_missing_double(mu: Tensor) -> None:
    """RuntimeError for float64 on a device without such arithmetic."""
    if mu.dtype is not torch.float64 or mu.device.type != "xpu":
        return
    properties = torch.xpu.get_device_properties(mu.device)
    if not properties.has_fp64:
        raise RuntimeError(
            f"rhovae::triton: {properties.name} has no float64 arithmetic. Convert mu, s and rho to "
            "float32, or move them to the CPU."
        )


class Gradient(NamedTuple):
    """Space for the gradient of an input, and the way from it to the input's own shape and type."""

    space: Tensor
    given: Tensor
    with_last: Tensor

    def reduced(self, held: bool = False) -> Tensor:
        """`held`: infinite terms, of either sign, are held first, or they would cancel to NaN."""
        summed, shape = self.space, self.with_last.shape
        if summed.shape != shape:
            if held:
                bound = LARGEST_TERM[summed.dtype]
                summed = summed.clamp(-bound, bound)
            if summed.shape[-1] != shape[-1]:  # a part for every chunk of the row
                summed = summed.sum(-1, keepdim=True)
            summed = summed.sum_to_size(shape)
        return summed.reshape(self.given.shape).to(self.given.dtype)


class Rows:
    """The rows of one call, the tensors along them, and the tiles they are cut into."""

    def __init__(self, mu: Tensor, scale: Tensor, rho: Tensor, z: Tensor | None = None) -> None:
        refuse_missing_double(mu)
        self.mu, self.steps, self.dtype = mu, mu.shape[-1], arithmetic_dtype(mu)
        self.lead = broadcast_leading(mu, scale, rho)
        if z is not None:
            self.lead = broadcast(z.shape[:-1], self.lead)
        self.count = 1
        for size in self.lead:
            self.count *= size
        self.scale = align_parameter(scale, mu)
        # A row of one step has no rho: a zero takes its place.
        self.rho = align_parameter(rho, mu) if self.steps > 1 else mu.new_zeros(1)
        self._tensors: dict[str, Tensor] = {}
        self._sample_strides: dict[str, int] = {}
        self.add("mu", mu)
        self.add("scale", self.scale)
        self.add("rho", self.rho)
        per_step = self.per_step("scale") or self.per_step("rho")
        self.blocks = blocks.blocks_for(self.steps, self.dtype.itemsize, per_step)

    @property
    def tiles(self) -> int:
        """Tiles that hold all rows, of one sample."""
        return -(-self.count // self.blocks.rows) * self.blocks.chunks

    def add(self, name: str, tensor: Tensor) -> None:
        """An operand that broadcasts to (*lead, steps) or (*lead, 1)."""
        last = tensor.shape[-1]
        if last != 1 and tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        self._tensors[name] = tensor.expand([*self.lead, last])

    def add_samples(self, name: str, tensor: Tensor | None) -> None:
        """An operand (samples?, *lead, steps)."""
        if tensor is None:
            return
        if tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        if tensor.dim() == len(self.lead) + 2:
            self._sample_strides[name] = tensor.stride(0)
            tensor = tensor.select(0, 0)
        self.add(name, tensor)

    def per_step(self, name: str) -> bool:
        """Whether an operand has a value for every step; a row of one step makes no difference."""
        return name in self._tensors and self._tensors[name].shape[-1] != 1

    def arguments(self, *names: str) -> dict[str, Any]:
        """What every kernel takes, and of each operand its tensor (None: absent) and the strides between
        rows.

        Strides, and steps, count groups of ALIGN elements: _VECTOR where all rows begin at a multiple of
        that.
        """
        tensors, groups = self._walk()
        strides: dict[str, list[int]] = {}
        align = _VECTOR if self.steps % _VECTOR == 0 else 1
        for name in names:
            tensor = tensors.get(name)
            along = [0 if tensor is None else tensor.stride(axis) for _, axis in groups]
            strides[name] = [self._sample_strides.get(name, 0), *([0] * (2 - len(groups))), *along]
            if self._vectors(name) and any(stride % _VECTOR for stride in strides[name]):
                align = 1
        found: dict[str, Any] = {
            "rows": self.count,
            "inner": groups[-1][0],
            "steps": self.steps // align,
            "chunks": self.blocks.chunks,
            "CHUNKED": self.blocks.chunks > 1,
            "DOUBLE": self.dtype.itemsize == 8,
            "AXES": len(groups),
            "ALIGN": align,
            "ROWS": self.blocks.rows,
            "STEPS": self.blocks.steps,
            "num_warps": self.blocks.warps,
        }
        for name in names:
            unit = align if self._vectors(name) else 1
            sample, outer, inner = (stride // unit for stride in strides[name])
            found |= {name: tensors.get(name), f"{name}_outer": outer, f"{name}_inner": inner}
            if name in _SAMPLED:
                found[f"{name}_sample"] = sample
            if name in _ONE_OR_EACH:
                found[f"{name.upper()}_STEP"] = self.per_step(name)
        return found

    def _vectors(self, name: str) -> bool:
        """Whether several steps are read at once; those of rho, a step off, never are."""
        return name != "rho" and self.per_step(name)

    def _walk(self) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
        """The operands and the axes to walk them by, at most two, as (size, axis).

        Neighbouring axes are one wherever every operand steps through them as through one.
        """
        tensors = self._tensors
        groups: list[tuple[int, int]] = []
        for axis, size in enumerate(self.lead):
            if size == 1:
                continue
            if groups and all(t.stride(groups[-1][1]) == t.stride(axis) * size for t in tensors.values()):
                groups[-1] = (groups[-1][0] * size, axis)
            else:
                groups.append((size, axis))
        if len(groups) > 2:  # strides this wild are not worth following
            tensors = {name: t.reshape(self.count, t.shape[-1]) for name, t in tensors.items()}
            groups = [(self.count, 0)]
        return tensors, groups or [(1, 0)]

    def values(self) -> Tensor:
        """Space for one value of every chunk of a row, (*lead, chunks)."""
        return self.mu.new_empty([*self.lead, self.blocks.chunks], dtype=self.dtype)

    def maps(self, samples: int) -> tuple[Tensor, Tensor]:
        """Space for the weights and the values of all chunks, (samples, rows, chunks) each."""
        size = [samples, self.count, self.blocks.chunks]
        return self.mu.new_empty(size, dtype=self.dtype), self.mu.new_empty(size, dtype=self.dtype)

    def gradient(self, given: Tensor, with_last: Tensor) -> Gradient:
        """Space (*lead, steps), or (*lead, chunks) for one value a row: own type if nothing is summed."""
        last = with_last.shape[-1]
        whole = [*self.lead, self.blocks.chunks if last == 1 else last]
        own = whole == list(with_last.shape)
        return Gradient(given.new_empty(whole, dtype=given.dtype if own else self.dtype), given, with_last)
