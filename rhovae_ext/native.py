"""The compiled module: loaded once, its absence explained once; what torch.compile has to know of its ops."""

from __future__ import annotations

import importlib
import json
import mmap
import re
from collections.abc import Callable
from functools import partial
from importlib import machinery
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .shapes import arithmetic_dtype

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
_FOLDER = Path(__file__).parent


def _series(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def torch_built_for(library: Path) -> str | None:
    """The torch version in a compiled module's build record, read from the file: it need not be loadable."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb'\{"torch": "([^"]+)"', content)
        return found[1].decode() if found else None


def _other_torch(built_for: str | None) -> str:
    return (
        f"the compiled module was built for torch {built_for or 'of another version'}, but torch "
        f"{torch.__version__} is running. Rebuild it in the folder of the sources: {REBUILD}"
    )


def _load() -> str | None:
    """Imports the compiled module, which registers its ops; the reason where that cannot be."""
    try:
        importlib.import_module(f"{__package__}._C")
    except ImportError as error:
        return _why_not_loaded(error)
    built_for = str(build_info()["torch"])
    if _series(built_for) != _series(torch.__version__):
        return _other_torch(built_for)
    lacking = [name for name in (*_FAKE, *_CHECKS) if not hasattr(torch.ops.rhovae, name)]
    if lacking:
        return (
            f"the compiled module is older than these sources (it has no {', '.join(lacking)}). "
            f"Rebuild it in the folder of the sources: {REBUILD}"
        )
    return None


def _why_not_loaded(error: ImportError) -> str:
    found = sorted(_FOLDER.glob("_C*.so")) + sorted(_FOLDER.glob("_C*.pyd"))
    here = [path for path in found if path.name in {f"_C{suffix}" for suffix in machinery.EXTENSION_SUFFIXES}]
    if not found:
        return f"the compiled module is not there. Build it in the folder of the sources: {REBUILD}"
    if not here:
        names = ", ".join(path.name for path in found)
        return f"the compiled module was built for another Python ({names}). Rebuild it: {REBUILD}"
    built_for = torch_built_for(here[0])
    if "undefined symbol" in str(error) or (built_for and _series(built_for) != _series(torch.__version__)):
        return f"{_other_torch(built_for)} ({error})"
    return f"the compiled module cannot be loaded ({error}). Rebuild it: {REBUILD}"


def build_info() -> dict[str, Any]:
    """What the compiled module was built with; raises AttributeError where it is not loaded."""
    info: dict[str, Any] = json.loads(torch.ops.rhovae.build_info())
    return info


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
unavailable: str | None = _load()

# The device types that the compiled kernels serve.
devices: frozenset[str] = frozenset()

if unavailable is None:
    devices = frozenset({"cpu", "cuda"} if build_info()["cuda"] else {"cpu"})
    for _name, _kernel in _FAKE.items():
        _fake = _kernel if _kernel is _draw_key else partial(_kernel, check(_name))
        torch.library.register_fake(f"rhovae::{_name}", _fake)
