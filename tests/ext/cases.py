"""Inputs of every kind that the shape rule allows, calls with all gradients, and their float64 truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import rhovae_ext
from rhovae_ext import reference
from rhovae_ext.shapes import arithmetic_dtype, broadcast_leading

# How a scale or a rho may be given for a mu of shape (*lead, d): a value per row or per step, shared or not.
KINDS = ("number", "zero_dim", "row", "row_kept", "step", "step_shared")
TENSOR_KINDS = KINDS[1:]


def parameter_shape(kind: str, lead: tuple[int, ...], steps: int) -> tuple[int, ...]:
    shapes = {
        "zero_dim": (),
        "row": lead,
        "row_kept": (*lead, 1),
        "step": (*lead, steps),
        "step_shared": (*(1 for _ in lead), steps),
    }
    return shapes[kind]


@dataclass
class Case:
    """The arguments of one call and the gradients that come back for its outputs."""

    mu: Tensor
    scale: Tensor | float
    rho: Tensor | float
    logits: bool = False
    per_dim: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        named = {"mu": self.mu, "scale": self.scale, "rho": self.rho, "eps": self.options.get("eps")}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def leaves(self) -> Case:
        """The same call on fresh leaves with the same strides."""

        def leaf(value: Any) -> Any:
            return value.detach().requires_grad_() if isinstance(value, Tensor) else value

        options = {name: leaf(value) if name == "eps" else value for name, value in self.options.items()}
        return replace(self, mu=leaf(self.mu), scale=leaf(self.scale), rho=leaf(self.rho), options=options)

    def call(self, backend: str) -> tuple[Tensor, Tensor]:
        function = rhovae_ext.ar1_reparam_kl_with_logits if self.logits else rhovae_ext.ar1_reparam_kl
        return function(self.mu, self.scale, self.rho, backend=backend, per_dim=self.per_dim, **self.options)

    def truth(self) -> Case:
        """The same call in float64, on the very numbers (and the very noise) that the call is given."""

        eps = self.options["eps"] if "eps" in self.options else drawn(self)
        options = {"eps": eps.detach().double(), "num_samples": self.options.get("num_samples")}
        return replace(self.truth_of_parameters(), options=options)

    def truth_of_parameters(self) -> Case:
        """mu, scale and rho in float64."""

        def double(value: Any) -> Any:
            return value.detach().double() if isinstance(value, Tensor) else value

        return replace(self, mu=double(self.mu), scale=double(self.scale), rho=double(self.rho))


def drawn(case: Case) -> Tensor:
    """The normals of a call with a key pair, from the reference."""
    mu, options = case.mu, case.options
    scale, rho = (torch.as_tensor(value) for value in (case.scale, case.rho))
    lead, samples = broadcast_leading(mu, scale, rho), options.get("num_samples")
    rows = torch.arange(int(torch.Size(lead).numel())) + options.get("row_offset", 0)
    if samples is not None:
        rows = rows * samples + torch.arange(samples).unsqueeze(-1)
        lead = [samples, *lead]
    key = torch.tensor(options["key"], dtype=torch.uint64)
    eps = reference.normals(key, rows, mu.shape[-1], arithmetic_dtype(mu))
    return eps.reshape([*lead, mu.shape[-1]]).to(mu.device)


def make_case(
    lead: tuple[int, ...],
    d: int,
    scale_kind: str = "row",
    rho_kind: str = "row",
    dtype: torch.dtype = torch.float64,
    parameter_dtype: torch.dtype | None = None,
    logits: bool = False,
    per_dim: bool = False,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """Random inputs of moderate size: |rho| up to 0.95, s between 1/3 and 3."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], low: float, high: float, to: torch.dtype) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * values).to(device, to)

    mu = draw((*lead, d), -1.5, 1.5, dtype)
    bounds = ((-1.1, 1.1), (-1.8, 1.8)) if logits else ((0.35, 3.0), (-0.95, 0.95))
    parameters: list[Tensor | float] = []
    for kind, (low, high), steps in zip((scale_kind, rho_kind), bounds, (d, d - 1), strict=True):
        if kind == "number":
            parameters.append(float(draw((), low, high, torch.float64)))
        else:
            parameters.append(draw(parameter_shape(kind, lead, steps), low, high, parameter_dtype or dtype))
    return Case(mu, parameters[0], parameters[1], logits=logits, per_dim=per_dim, options=options)


def with_eps(case: Case, dtype: torch.dtype | None = None, seed: int = 1) -> Case:
    """The case with standard normals of its own in place of a key."""
    scale, rho = (torch.as_tensor(value) for value in (case.scale, case.rho))
    samples = case.options.get("num_samples")
    shape = [
        *([] if samples is None else [samples]),
        *broadcast_leading(case.mu, scale, rho),
        case.mu.shape[-1],
    ]
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(
        case, options={"eps": eps.to(case.mu.device, dtype or case.mu.dtype), "num_samples": samples}
    )


def cotangents(case: Case, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random gradients of z and kl, in the types that these have."""
    z, kl = case.truth().call("reference")
    generator = torch.Generator().manual_seed(seed)
    dz = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    dkl = torch.randn(kl.shape, generator=generator, dtype=torch.float64)
    return dz.to(case.mu.device, case.mu.dtype), dkl.to(case.mu.device, arithmetic_dtype(case.mu))


def results(case: Case, backend: str, dz: Tensor | None, dkl: Tensor | None) -> dict[str, Tensor]:
    """z, kl and the gradient by every tensor of the call."""
    case = case.leaves()
    z, kl = case.call(backend)
    outputs = [(output, grad.to(output.dtype)) for output, grad in ((z, dz), (kl, dkl)) if grad is not None]
    names = [name for name in case.inputs if name != "eps" or dz is not None]
    grads = torch.autograd.grad(
        [output for output, _ in outputs],
        [case.inputs[name] for name in names],
        [grad for _, grad in outputs],
    )
    return {"z": z.detach(), "kl": kl.detach()} | {
        f"d{name}": g for name, g in zip(names, grads, strict=True)
    }
