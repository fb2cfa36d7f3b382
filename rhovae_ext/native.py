"""The compiled module's ops, and what torch.compile has to know of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor

from . import loading
from .shapes import arithmetic_dtype


def cpu_capability() -> str:
    """The instruction set that the CPU kernels run with: "avx512", "avx2" or "portable"."""
    capability: str = torch.ops.rhovae.cpu_capability()
    return capability


# Fake kernels: shapes and types of the results, for torch.compile and friends. They refuse what the kernels
# refuse, by the same checks in C++: from an op's arguments to the leading axes of all its tensors.

Check = Callable[..., list[int]]


def check(name: str) -> Check:
    """The checks of the arguments of `rhovae::{name}`, an op of the chain; errors name it."""
    checks: Check = getattr(torch.ops.rhovae, f"check_{name.removeprefix('triton_')}").default
    return partial(checks, f"rhovae::{name}")


def _draw_key(like: Tensor, generator: torch.Generator | None = None, *, on_device: bool = False) -> Tensor:
    torch.ops.rhovae.check_draw_key.default(like, generator)
    return torch.empty(2, dtype=torch.int64, device=like.device if on_device else "cpu")


def _ar1(
    check: Check,
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
    lead = check(mu, scale, rho, key, eps, num_samples, row_offset, logits, sample, kl)
    samples, d = [] if num_samples is None else [num_samples], mu.shape[-1]
    divergence = ([0], lead, [*lead, d])[kl]
    return (
        mu.new_empty([*samples, *lead, d] if sample else [0]),
        mu.new_empty(divergence, dtype=arithmetic_dtype(mu)),
    )


def _ar1_backward(
    check: Check,
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
    check(dz, dkl, mu, scale, rho, key, eps, num_samples, row_offset, logits, kl, needs_deps)
    deps = eps.new_empty(eps.shape) if needs_deps and eps is not None else mu.new_empty(0)
    return mu.new_empty(mu.shape), scale.new_empty(scale.shape), rho.new_empty(rho.shape), deps


def _ar1_log_prob(check: Check, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool) -> Tensor:
    return mu.new_empty(check(z, mu, scale, rho, logits), dtype=arithmetic_dtype(mu))


def _ar1_log_prob_backward(
    check: Check, dlog_prob: Tensor, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(dlog_prob, z, mu, scale, rho, logits)
    return (
        z.new_empty(z.shape),
        mu.new_empty(mu.shape),
        scale.new_empty(scale.shape),
        rho.new_empty(rho.shape),
    )


def _refuse_nested(cls: type, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
    given = zip(op._schema.arguments, args, strict=False)
    name = next(argument.name for argument, value in given if isinstance(value, cls))
    raise TypeError(
        f"{op._schema.name}: {name} must be a dense tensor, but got a nested tensor. Convert or pad it."
    )


_CHAIN: dict[str, Callable[..., Any]] = {
    "ar1": _ar1,
    "ar1_backward": _ar1_backward,
    "ar1_log_prob": _ar1_log_prob,
    "ar1_log_prob_backward": _ar1_log_prob_backward,
}
# Every op of the compiled module that traced code may meet.
_FAKE: dict[str, Callable[..., Any]] = {
    "draw_key": _draw_key,
    **_CHAIN,
    **{f"triton_{name}": fake for name, fake in _CHAIN.items()},
}
_CHECKS = tuple(f"check_{name}" for name in ("draw_key", *_CHAIN))

# None where the compiled module is loaded and fits the running torch, else why not and what to run.
unavailable: str | None = loading.load((*_FAKE, *_CHECKS))

# The device types that the compiled kernels serve.
devices: frozenset[str] = frozenset()

if unavailable is None:
    devices = frozenset({"cpu", "cuda"} if loading.build_info()["cuda"] else {"cpu"})
    for _name, _kernel in _FAKE.items():
        _fake = _kernel if _kernel is _draw_key else partial(_kernel, check(_name))
        torch.library.register_fake(f"rhovae::{_name}", _fake)
        # Below autograd, where inference mode is, jagged tensors come by their own dispatch.
        torch.library.register_torch_dispatch(f"rhovae::{_name}", NestedTensor, _refuse_nested)
