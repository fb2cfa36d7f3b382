"""The ops `rhovae::triton_*`, whose schemas and autograd are the compiled module's.

Eagerly they launch at once; torch.compile sees the launches themselves, not an opaque op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from .. import native, reference
from . import backward as _backward
from . import forward as _forward
from . import log_prob as _log_prob
from .blocks import FOLD
from .launch import INTERPRETED, Launch, for_samples, now, traced
from .rows import Rows


def _key(key: Tensor | None, mu: Tensor, needed: bool) -> Tensor | None:
    """(seed, offset) as signed patterns on mu's device; a key that is there already is not waited for."""
    if not needed or key is None:
        return None
    return key.contiguous().view(torch.int64).to(mu.device, non_blocking=True)


def _eps_of_rows(
    rows: Rows, key: Tensor | None, eps: Tensor | None, num_samples: int | None, row_offset: int
) -> Tensor | None:
    """Given noise; that of rows with keys of their own, too: the kernels draw with one key for all."""
    if eps is not None or key is None or key.dim() == 1:
        return eps
    return reference.draw(key, row_offset, num_samples, rows.lead, rows.steps, rows.mu)


def _maps_of_x(
    launch: Launch, rows: Rows, noise: dict[str, Any], samples: int, logits: bool
) -> tuple[Tensor | None, Tensor | None]:
    """For rows of several chunks, the map of each: so they can all be computed at once."""
    if rows.blocks.chunks == 1:
        return None, None
    weights, values = rows.maps(samples)
    arguments = rows.arguments("rho", "eps") | noise
    arguments |= {"weights": weights, "values": values, "samples": samples, "LOGITS": logits}
    for_samples(launch, _forward.totals, rows.tiles, samples, rows.mu, arguments)
    return weights, values


def ar1(
    launch: Launch,
    mu: Tensor,
    scale: Tensor,
    rho: Tensor,
    key: Tensor | None,
    eps: Tensor | None,
    num_samples: int | None,
    row_offset: int,
    logits: bool,
    sample: bool,
    kl: int,
) -> tuple[Tensor, Tensor]:
    rows = Rows(mu, scale, rho)
    samples = 1 if num_samples is None or not sample else num_samples
    z = mu.new_empty(
        [*([] if num_samples is None else [num_samples]), *rows.lead, rows.steps] if sample else [0]
    )
    if kl == 1:
        divergence = rows.values()
    else:
        divergence = mu.new_empty([*rows.lead, rows.steps] if kl == 2 else [0], dtype=rows.dtype)
    if rows.count > 0:
        eps = _eps_of_rows(rows, key, eps, num_samples, row_offset) if sample else None
        rows.add_samples("eps", eps)
        noise = {"key": _key(key, mu, sample and eps is None), "row_offset": row_offset}
        weights, values = _maps_of_x(launch, rows, noise, samples, logits) if sample else (None, None)
        outputs = {"z": z if sample else None, "kl": divergence if kl else None}
        arguments = rows.arguments("mu", "scale", "rho", "eps") | noise | outputs
        arguments |= {"weights": weights, "values": values, "samples": samples}
        arguments |= {"LOGITS": logits, "KL": kl, "FOLD": FOLD}
        for_samples(launch, _forward.forward, rows.tiles, samples, mu, arguments)
    if kl == 1:
        divergence = divergence.squeeze(-1) if rows.blocks.chunks == 1 else divergence.sum(-1)
    return z, divergence


def ar1_backward(
    launch: Launch,
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    rho: Tensor,
    key: Tensor | None,
    eps: Tensor | None,
    num_samples: int | None,
    row_offset: int,
    logits: bool,
    kl: int,
    needs_deps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = Rows(mu, scale, rho)
    samples = 1 if num_samples is None or dz is None else num_samples
    dmu, dscale, drho = (
        rows.gradient(given, with_last)
        for given, with_last in ((mu, mu), (scale, rows.scale), (rho, rows.rho))
    )
    deps = mu.new_empty(0)
    if needs_deps and eps is not None:
        deps = eps.new_zeros(eps.shape) if dz is None else eps.new_empty(eps.shape)
    if rows.count > 0:
        eps = None if dz is None else _eps_of_rows(rows, key, eps, num_samples, row_offset)
        rows.add_samples("dz", dz)
        rows.add_samples("eps", eps)
        if dkl is not None:
            rows.add("dkl", dkl if kl == 2 else dkl.unsqueeze(-1))
        noise = {"key": _key(key, mu, dz is not None and eps is None), "row_offset": row_offset}
        maps: tuple[Tensor | None, ...] = (None,) * 4
        if dz is not None:
            maps = (
                *_maps_of_x(launch, rows, noise, samples, logits),
                *_maps_of_adjoint(launch, rows, samples, logits),
            )
        names = ("weights", "values", "adjoint_weights", "adjoint_values")
        arguments = rows.arguments("dz", "dkl", "mu", "scale", "rho", "eps") | noise
        arguments |= dict(zip(names, maps, strict=True))
        arguments |= {
            "dmu": dmu.space,
            "dscale": dscale.space,
            "drho": drho.space if rows.steps > 1 else None,
        }
        arguments |= {"deps": deps if needs_deps and dz is not None else None, "samples": samples}
        arguments |= {"LOGITS": logits, "FOLD": FOLD}
        launch(_backward.backward, (rows.tiles, 1), mu, arguments)
    by_rho = drho.reduced() if rows.steps > 1 else rho.new_zeros(rho.shape)
    return dmu.reduced(), dscale.reduced(held=True), by_rho, deps


def _maps_of_adjoint(
    launch: Launch, rows: Rows, samples: int, logits: bool
) -> tuple[Tensor | None, Tensor | None]:
    if rows.blocks.chunks == 1:
        return None, None
    weights, values = rows.maps(samples)
    arguments = rows.arguments("dz", "scale", "rho")
    arguments |= {"adjoint_weights": weights, "adjoint_values": values, "LOGITS": logits}
    for_samples(launch, _backward.adjoint_totals, rows.tiles, samples, rows.mu, arguments)
    return weights, values


def ar1_log_prob(launch: Launch, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool) -> Tensor:
    rows = Rows(mu, scale, rho, z)
    out = rows.values()
    if rows.count > 0:
        rows.add("z", z)
        arguments = rows.arguments("z", "mu", "scale", "rho") | {"out": out, "LOGITS": logits}
        launch(_log_prob.log_prob, (rows.tiles, 1), mu, arguments)
    return out.squeeze(-1) if rows.blocks.chunks == 1 else out.sum(-1)


def ar1_log_prob_backward(
    launch: Launch, dlog_prob: Tensor, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = Rows(mu, scale, rho, z)
    dz, dmu, dscale, drho = (
        rows.gradient(given, with_last)
        for given, with_last in ((z, z), (mu, mu), (scale, rows.scale), (rho, rows.rho))
    )
    if rows.count > 0:
        rows.add("z", z)
        rows.add("dlog_prob", dlog_prob.unsqueeze(-1))
        arguments = rows.arguments("dlog_prob", "z", "mu", "scale", "rho")
        arguments |= {"dz": dz.space, "dmu": dmu.space, "dscale": dscale.space}
        arguments |= {"drho": drho.space if rows.steps > 1 else None, "LOGITS": logits}
        launch(_log_prob.log_prob_backward, (rows.tiles, 1), mu, arguments)
    by_rho = drho.reduced() if rows.steps > 1 else rho.new_zeros(rho.shape)
    return dz.reduced(held=True), dmu.reduced(held=True), dscale.reduced(), by_rho


_OPS = {
    "triton_ar1": ar1,
    "triton_ar1_backward": ar1_backward,
    "triton_ar1_log_prob": ar1_log_prob,
    "triton_ar1_log_prob_backward": ar1_log_prob_backward,
}

_library = torch.library.Library("rhovae", "IMPL")


def _register(name: str, op: Any) -> None:
    check = native.check(name)

    def eager(*args: Any) -> Any:
        check(*args)
        return op(now, *args)

    for devices in ("CPU", "CUDA", "XPU"):
        _library.impl(name, eager, devices)
    if INTERPRETED:
        return  # NumPy computes: nothing to see through

    def decomposed(mode: Any, _op: Any, _types: Any, args: Any, kwargs: Any) -> Any:
        with mode:
            return op(traced, *args, **(kwargs or {}))

    torch.library.register_torch_dispatch(f"rhovae::{name}", FunctionalTensorMode, decomposed, lib=_library)


for _name, _op in _OPS.items():
    _register(_name, _op)
