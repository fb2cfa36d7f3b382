"""The key of a draw nobody gave a key for: two 64-bit numbers from a torch generator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

# For devices without an op of the compiled module. An op here too, so that torch.compile leaves the draw to
# the generator and gives what eager gives.
_library = torch.library.Library("rhovae_ext", "DEF")
_library.define(
    "draw_key(Tensor like, Generator? generator=None) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


def _draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    bits = torch.empty(2, dtype=torch.int64, device=like.device)
    return bits.random_(-(1 << 63), None, generator=generator).view(torch.uint64)


def _fake_draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.empty(2, dtype=torch.uint64, device=like.device)


_library.impl("draw_key", _draw_key, "CompositeExplicitAutograd")
torch.library.register_fake("rhovae_ext::draw_key", _fake_draw_key, lib=_library)


_draw_natively = torch.ops.rhovae.draw_key.default if native.unavailable is None else None


def draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(seed, offset), a uint64 tensor: on `like`'s device, or on the CPU where that saves a kernel."""
    if _draw_natively is None or not (like.is_cpu or like.device.type in native.devices):
        drawn: Tensor = torch.ops.rhovae_ext.draw_key.default(like, generator)
        return drawn
    if like.is_cpu:  # at 128 x 10 every question asked in Python is felt
        drawn = _draw_natively(like, generator)
        return drawn
    # What is traced has to know the key's device, whoever replays it.
    drawn = _draw_natively(like, generator, on_device=torch.compiler.is_compiling())
    return drawn
