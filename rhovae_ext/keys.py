"""The key of a draw nobody gave a key for: two 64-bit numbers from a torch generator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native


def _draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    bits = torch.empty(2, dtype=torch.int64, device=like.device)
    return bits.random_(-(1 << 63), None, generator=generator).view(torch.uint64)


if native.unavailable is not None:
    # An op here too, so that torch.compile leaves the draw to the generator and gives what eager gives.
    _library = torch.library.Library("rhovae_ext", "DEF")
    _library.define(
        "draw_key(Tensor like, Generator? generator=None) -> Tensor",
        tags=(torch.Tag.nondeterministic_seeded,),
    )
    _library.impl("draw_key", _draw_key, "CompositeExplicitAutograd")
    torch.library.register_fake("rhovae_ext::draw_key", native.fake_draw_key, lib=_library)
    draw_key = torch.ops.rhovae_ext.draw_key.default
else:
    draw_key = torch.ops.rhovae.draw_key.default
