"""Which implementation serves a call, and why one is missing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor

from . import loading, native, reference

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


_F = TypeVar("_F", bound=Callable[..., Any])


def _constant_while_tracing(function: _F) -> _F:
    """torch.compiler.assume_constant_result, which imports the whole compiler to set this: two seconds."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


class Backend(NamedTuple):
    """The two operations; signatures as in `reference`."""

    ar1: Callable[..., tuple[Tensor, Tensor]]
    ar1_log_prob: Callable[..., Tensor]


NAMES = ("native", "triton", "reference")

_REFERENCE = Backend(reference.ar1, reference.ar1_log_prob)
_LOADED: dict[str, Backend] = {"reference": _REFERENCE}
if native.unavailable is None:
    _LOADED["native"] = Backend(torch.ops.rhovae.ar1.default, torch.ops.rhovae.ar1_log_prob.default)
    _LOADED["triton"] = Backend(
        torch.ops.rhovae.triton_ar1.default, torch.ops.rhovae.triton_ar1_log_prob.default
    )
_NATIVE = _LOADED.get("native")


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Every backend by name: None where it can serve tensors on `device`, else why not and how to get it."""
    device_type = torch.device(device).type
    return {name: _missing(name, device_type) for name in NAMES}


def _missing(name: str, device_type: str) -> str | None:
    if name == "reference":
        return None
    if name == "triton":
        reason: str | None = _triton_missing(device_type)
        return reason
    if native.unavailable is not None:
        return native.unavailable
    if device_type in native.devices:
        return None
    if device_type != "cuda":
        return f"the compiled kernels serve CPU and CUDA tensors, not {device_type}. Use backend='reference'"
    without_cuda: str = _without_cuda()
    return without_cuda


# Evaluated while tracing, so that the graph stays whole.
@_constant_while_tracing
def _without_cuda() -> str:
    decision = loading.build_info()["cuda_decision"]
    return (
        f"the compiled module was built without CUDA ({decision}). Install the CUDA toolkit of torch's "
        f"version and {loading.remedy('rebuild it', 'RHOVAE_CUDA=1 ')}"
    )


# Imported when first asked for. Evaluated while tracing, so that the graph stays whole.
@_constant_while_tracing
def _triton_missing(device_type: str) -> str | None:
    from . import triton

    return triton.unavailable(device_type)


def choose(operation: str, backend: str | None, mu: Tensor) -> Backend:
    """The backend of a call: what `backend` names; for None and "auto" the fastest one for mu's device."""
    if type(mu) is not Tensor and _is_dtensor(mu):
        from . import dtensor

        return dtensor.over_ranks(operation, choose(operation, backend, mu.to_local()))
    if backend is None or backend == "auto":
        if mu.is_cpu and _NATIVE is not None:
            return _NATIVE
        return _automatic(mu.device.type)
    if backend not in NAMES:
        names = ", ".join(repr(name) for name in ("auto", *NAMES))
        raise ValueError(f"{operation}: backend must be one of {names}, but got {backend!r}.")
    reason = _missing(backend, mu.device.type)
    if reason is not None:
        raise RuntimeError(f"{operation}: backend {backend!r} is not available: {reason}")
    return _LOADED[backend]


def _is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Asked of the modules that are there: whoever has a DTensor has imported theirs, which is slow."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _automatic(device_type: str) -> Backend:
    if device_type == "meta":  # shapes alone
        return _REFERENCE
    fused = ("native",) if device_type == "cpu" else ("native", "triton")
    reasons = ""
    for name in fused:
        reason = _missing(name, device_type)
        if reason is None:
            return _LOADED[name]
        reasons += f"\n  {name}: {reason}"
    _warn_once(device_type, reasons)
    return _REFERENCE


_warned: set[str] = set()


# Evaluated while tracing, so that torch.compile warns as eager does and the graph stays whole.
@_constant_while_tracing
def _warn_once(device_type: str, reasons: str) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    warnings.warn(
        f"rhovae_ext: no fused kernels for {device_type} tensors; the plain PyTorch reference serves them, "
        f"many times slower (backend='reference' asks for it without this warning).{reasons}",
        RuntimeWarning,
        stacklevel=6,
    )
