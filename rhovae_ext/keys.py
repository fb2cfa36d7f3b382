"""Keys of the noise: derived from other keys, or drawn from a torch generator where nobody gave one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import arguments, native, reference, transforms
from .arguments import Key

# For devices without an op of the compiled module. An op here too, so that torch.compile leaves the draw to
# the generator and gives what eager gives.
_library = torch.library.Library("rhovae_ext", "DEF")
_library.define(
    "draw_key(Tensor like, Generator? generator=None) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


def _draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    bits = torch.empty(2, dtype=torch.int64, device=like.device)
    return bits.random_(-(1 << 63), None, generator=generator)


def _fake_draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=like.device)


_library.impl("draw_key", _draw_key, "CompositeExplicitAutograd")
_library.impl("draw_key", transforms.draw_key, "FuncTorchVmapMode")
torch.library.register_fake("rhovae_ext::draw_key", _fake_draw_key, lib=_library)


_CPU = torch.device("cpu")  # the default device has no say in where a key lies
_draw_natively = torch.ops.rhovae.draw_key.default if native.unavailable is None else None


def draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(seed, offset), their bits in int64: on `like`'s device, or on the CPU where that saves a kernel."""
    if _draw_natively is None or not (like.is_cpu or like.device.type in native.devices):
        drawn: Tensor = torch.ops.rhovae_ext.draw_key.default(like, generator)
        return drawn
    if like.is_cpu:  # at 128 x 10 every question asked in Python is felt
        drawn = _draw_natively(like, generator)
        return drawn
    # What is traced has to know the key's device, whoever replays it.
    drawn = _draw_natively(like, generator, on_device=torch.compiler.is_compiling())
    return drawn


def _numbers_of(key: Key) -> Any:
    """A key as plain numbers, with which Philox is a hundred times quicker, where they may be looked at."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return None
    if not isinstance(key, Tensor):
        return key
    if type(key) is not Tensor or not key.is_cpu or key.dtype is not torch.uint64 or key.shape != (2,):
        return None
    if _get_current_dispatch_mode() is not None:  # a tracer's: it would take the numbers for constants
        return None
    try:
        return key.tolist()
    except RuntimeError:  # a slice of vmap's has none of its own
        return None


def fold_in(key: Key, data: int | Tensor) -> Tensor:
    r"""A new key from a key and a number: a stream of its own for every step, layer, rank or item.

    .. math::
        (w_0, w_1, w_2, w_3) = \text{Philox}_{\text{seed}}(\text{offset} + \text{data}, 0), \qquad
        \text{fold\_in} = (w_0 + 2^{32} w_1,\; w_2 + 2^{32} w_3)

    the four words of block `data` of the key's row 0; bit for bit `torch.func._random.fold_in` (on a GPU).
    Not `(seed, step)`: the offset counts blocks, so step 1 would draw step 0's noise moved on by four values.
    Nor should one draw with a key and fold into it as well: its row 0 is what the derived keys are made of.

    Args:
        key: a seed (its offset 0), a (seed, offset) pair of ints, or a uint64 tensor of shape (..., 2).
        data: an int in [0, 2^64), or a tensor of integers on the device of a key that is a tensor; its values
            are not inspected, and negative ones count from 2^64 down.

    Returns:
        A uint64 tensor: the leading axes of `key` and `data.shape` broadcast together, then 2. On the device
        of the tensors given, the CPU without; of shape (2,) it goes where `key=` is asked for.

    Raises:
        TypeError: a key or data of another type.
        ValueError: numbers out of range, or shapes that do not broadcast.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    pair = None if isinstance(data, Tensor) else _numbers_of(key)
    if pair is not None:
        numbers = arguments.folded_numbers("fold_in", pair, cast(int, data))
        return arguments.key_of_numbers(*reference.fold_in_numbers(*numbers))
    device = data.device if isinstance(data, Tensor) else _CPU
    key = arguments.key_to_derive_from("fold_in", key, device)
    return reference.fold_in(key, arguments.folded_data("fold_in", key, data))


def split(key: Key, n: int = 2) -> Tensor:
    r"""n new keys from one: `split(key, n)[i] = fold_in(key, i)`.

    Args:
        key: as for `fold_in`.
        n: how many, at least 1.

    Returns:
        A uint64 tensor of shape (n, *key.shape), on the key's device, the CPU if it was no tensor.

    Raises:
        TypeError: a key of another type.
        ValueError: n < 1, or numbers out of range.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    key = arguments.key_to_derive_from("split", key, _CPU)
    each = torch.arange(arguments.split_count("split", n), device=key.device)
    return reference.fold_in(key, each.reshape(n, *(1 for _ in key.shape[:-1])))
