"""A problem for the emulated kernels, and what float64 autograd through the plain reference says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhovae_ext import reference

Array = npt.NDArray[Any]

TYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Of the largest value. Half types round their outputs; what is computed inside is float32's.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 8e-3, "float16": 1e-3}


def arithmetic(name: str) -> torch.dtype:
    return torch.float64 if name == "float64" else torch.float32


def to_numpy(tensor: Tensor) -> Array:
    """bfloat16 travels as its bits."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def to_float64(array: Array, name: str | None = None) -> Array:
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).double().numpy()
    return array.astype(np.float64)


def misalign(tensor: Tensor, elements: int) -> Tensor:
    """The same values, at an address that many elements past a multiple of 64 bytes."""
    width = tensor.element_size()
    buffer = torch.empty(tensor.numel() + elements + 64 // width, dtype=tensor.dtype)
    first = (-buffer.data_ptr() % 64) // width + elements
    view = buffer[first : first + tensor.numel()].view(tensor.shape)
    return view.copy_(tensor)


@dataclass
class Problem:
    """mu (rows, d), scale (rows, 1 or d), rho (rows, 1 or d-1); eps and dz (K, rows, d)."""

    mu: Tensor
    scale: Tensor
    rho: Tensor
    name: str = "float32"
    logits: bool = True
    samples: int = 1
    key: tuple[int, int] = (0x0123456789ABCDEF, 2**32 - 3)
    key_in_memory: bool = False
    row_offset: int = 5
    eps: Tensor | None = None

    @property
    def d(self) -> int:
        return self.mu.shape[-1]

    @property
    def common(self) -> dict[str, Any]:
        return {
            "mu": to_numpy(self.mu),
            "scale": to_numpy(self.scale),
            "rho": to_numpy(self.rho),
            "eps": None if self.eps is None else to_numpy(self.eps),
            "key": self.key,
            "key_in_memory": self.key_in_memory,
            "row_offset": self.row_offset,
            "samples": self.samples,
            "logits": self.logits,
        }

    def noise(self) -> Tensor:
        """(K, rows, d) in float64."""
        if self.eps is not None:
            return self.eps.double()
        key = torch.tensor(self.key, dtype=torch.uint64)
        rows = (torch.arange(self.mu[..., 0].numel()) + self.row_offset) * self.samples
        rows = rows + torch.arange(self.samples).unsqueeze(-1)
        drawn = reference.normals(key, rows, self.d, arithmetic(self.name)).double()
        return drawn.view(self.samples, *self.mu.shape)

    def exact(self, kl: int, dz: Tensor | None = None, dkl: Tensor | None = None) -> dict[str, Array | None]:
        """z, kl and, with dz or dkl, every gradient, in float64."""
        mu, scale, rho = (t.detach().double().requires_grad_() for t in (self.mu, self.scale, self.rho))
        eps = self.noise().requires_grad_()
        # A chain of one step has no correlation, per step or per row.
        z, divergence = reference.ar1(
            mu, scale, rho, None, eps, self.samples, 0, self.logits, True, max(kl, 1)
        )
        loss = torch.zeros((), dtype=torch.float64)
        if dz is not None:
            loss = loss + (dz.double() * z).sum()
        if dkl is not None:
            loss = loss + (dkl.double().view_as(divergence) * divergence).sum()
        gradients: tuple[Tensor | None, ...] = (None,) * 4
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, (mu, scale, rho, eps), allow_unused=True)
        names = ("mu", "scale", "rho", "eps")
        found = {"z": z.detach().numpy(), "kl": divergence.detach().numpy()}
        return found | {n: None if g is None else g.numpy() for n, g in zip(names, gradients, strict=True)}


def draw(
    d: int,
    rows: int,
    name: str = "float32",
    scale_per_step: bool = False,
    rho_per_step: bool = False,
    parameters: str | None = None,
    logits: bool = True,
    samples: int = 1,
    given_eps: bool = False,
    seed: int = 0,
    **more: Any,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dtype = TYPES[name]
    given = TYPES[parameters or name]
    scale = 0.4 * normal(rows, d if scale_per_step else 1)
    rho = normal(rows, d - 1 if rho_per_step else 1)
    if not logits:
        scale, rho = scale.exp(), torch.tanh(rho).clamp(-0.97, 0.97)  # a half type rounds more to 1
    eps = normal(samples, rows, d).to(dtype) if given_eps else None
    return Problem(
        normal(rows, d).to(dtype), scale.to(given), rho.to(given), name, logits, samples, eps=eps, **more
    )


def agree(found: Array, exact: Array | None, tolerance: float, what: str) -> None:
    values = to_float64(found)
    assert exact is not None
    expected = exact.reshape(values.shape)
    assert not np.isnan(values).any(), f"{what}: an element is NaN, or nobody wrote it"
    error = np.abs(values - expected).max(initial=0.0)
    size = np.abs(expected).max(initial=1e-30)
    assert error <= tolerance * size, f"{what}: off by {error:.3g}, largest value {size:.3g}"
