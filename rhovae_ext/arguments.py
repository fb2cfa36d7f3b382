"""Every check of the public functions' arguments, once, for all backends, before any work.

Only types, shapes and devices are read, never values: no synchronisation with a device. The common case is a
handful of comparisons, because at 128 x 10 the price of a call is the call itself.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .shapes import arithmetic_dtype, broadcast, broadcast_leading, parameter_leading

# What a caller may give for s and rho (or log_s and rho_logit), and for the key of the noise.
Parameter = Tensor | float
Key = Tensor | tuple[int, int] | int

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_INTEGERS = frozenset(
    (
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    )
)
_STRIDED = torch.strided
_64_BITS = 1 << 64


def _refuse(
    kind: type[Exception], operation: str, argument: str, expected: str, got: object, remedy: str
) -> NoReturn:
    raise kind(f"{operation}: {argument} must be {expected}, but got {got}. {remedy}")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    shown = repr(value) if not isinstance(value, int) or abs(value) < 1 << 128 else "of many digits"
    shown = " ".join(shown.split())  # an array's takes several lines
    return f"{type(value).__name__} {shown if len(shown) <= 80 else shown[:80] + '...'}"


def parameters(
    operation: str,
    mu: Tensor,
    scale: Parameter,
    rho: Parameter,
    scale_name: str,
    rho_name: str,
    mu_name: str = "mu",
) -> tuple[Tensor, Tensor]:
    """Checks mu, scale and rho together; returns the two parameters as tensors."""
    steps = chain_length(operation, mu_name, mu)
    if mu.is_cpu and _fits(mu, scale, steps) and _fits(mu, rho, steps - 1):
        return cast(Tensor, scale), cast(Tensor, rho)
    scale = _parameter(operation, scale_name, scale, mu, steps, "d", mu_name)
    rho = _parameter(operation, rho_name, rho, mu, steps - 1, "d-1", mu_name)
    shape = mu.shape
    if not (_has_rows_of(shape, scale.shape) and _has_rows_of(shape, rho.shape)):
        _check_leading(operation, mu, scale, rho, scale_name, rho_name, mu_name)
    return scale, rho


def _fits(mu: Tensor, value: Parameter, steps: int) -> bool:
    """The case that a model calls, in fewer questions: a dense CPU tensor of mu's type, rank and rows."""
    if not isinstance(value, Tensor) or value.dtype is not mu.dtype:
        return False
    if not value.is_cpu or value.layout is not _STRIDED:
        return False
    try:
        shape, own = mu.shape, value.shape
    except RuntimeError:  # a nested one has none
        return False
    if len(own) != len(shape) or (own[-1] != 1 and own[-1] != steps):
        return False
    return _has_rows_of(shape, own)


def _has_rows_of(shape: torch.Size, own: torch.Size) -> bool:
    """Whether a parameter's leading axes are mu's or none: no broadcast to look at."""
    axes = len(shape) - 1
    if len(own) == 0:
        return True
    if not axes <= len(own) <= len(shape):
        return False
    # A slice of a torch.Size, or a generator, would cost as much as the rest of the checks.
    for axis in range(axes):  # noqa: SIM110
        if own[axis] != shape[axis]:
            return False
    return True


def chain_length(operation: str, name: str, mu: Tensor) -> int:
    """d, the length of the last axis; refuses what no chain can be."""
    if not isinstance(mu, Tensor):
        _refuse(TypeError, operation, name, "a tensor", _described(mu), "Give it as torch.as_tensor(...).")
    if mu.layout is not _STRIDED:
        _refuse_layout(operation, name, mu)
    if mu.dtype not in _FLOATS:
        _refuse(
            TypeError,
            operation,
            name,
            "float32, float64, bfloat16 or float16",
            mu.dtype,
            f"Convert it, for example {name}.float().",
        )
    try:
        shape = mu.shape
    except RuntimeError:  # a nested one has none
        _refuse_layout(operation, name, mu)
    if len(shape) == 0 or shape[-1] == 0:
        _refuse(
            ValueError,
            operation,
            name,
            "of shape (..., d) with d >= 1",
            f"shape {tuple(shape)}",
            "The last axis is the chain.",
        )
    return shape[-1]


def _check_layout(operation: str, name: str, value: Tensor) -> None:
    if value.layout is not _STRIDED or value.is_nested:
        _refuse_layout(operation, name, value)


def _refuse_layout(operation: str, name: str, value: Tensor) -> NoReturn:
    kind = "nested tensor" if value.is_nested else f"tensor of layout {value.layout}"
    _refuse(TypeError, operation, name, "a dense tensor", f"a {kind}", "Convert or pad it.")


def correlation(operation: str, s: Tensor, rho: Parameter) -> Tensor:
    """Checks s, one value per step, and rho against it; returns rho as a tensor."""
    steps = chain_length(operation, "s", s)
    rho = _parameter(operation, "rho", rho, s, steps - 1, "d-1", of="s")
    try:
        broadcast(s.shape[:-1], parameter_leading(rho, s))
    except RuntimeError:
        raise ValueError(
            f"{operation}: the leading axes of s and rho must broadcast together, but got shapes "
            f"{tuple(s.shape)} and {tuple(rho.shape)}. Make each of them equal or 1."
        ) from None
    return rho


def _parameter(
    operation: str, name: str, value: Parameter, mu: Tensor, steps: int, per_step: str, of: str = "mu"
) -> Tensor:
    if not isinstance(value, Tensor):
        number = _number(operation, name, value, arithmetic_dtype(mu))
        return torch.full((), number, dtype=arithmetic_dtype(mu), device=mu.device)
    if value.layout is not _STRIDED:
        _refuse_layout(operation, name, value)
    if value.dtype is not torch.float32 and value.dtype is not mu.dtype:
        value = promoted(value, mu)
        if value.dtype is not torch.float32:
            allowed = "float32" if mu.dtype is torch.float32 else f"{mu.dtype} (as {of}) or float32"
            _refuse(TypeError, operation, name, allowed, value.dtype, f"Convert it: {name}.to({of}.dtype).")
    same_device(operation, name, value, mu, of)
    try:
        own, rank = value.shape, mu.dim()
    except RuntimeError:  # a nested one has no shape
        _refuse_layout(operation, name, value)
    if len(own) >= rank:
        if own[-1] == 1 or own[-1] == steps:
            return value
    elif len(own) == 0 or (len(own) == rank - 1 and _has_rows_of(mu.shape, own)):
        return value
    _refuse(
        ValueError,
        operation,
        name,
        f"a number, one value per row (shape {of}.shape[:-1] = {tuple(mu.shape[:-1])} or (..., 1)) "
        f"or one per step (shape (..., {per_step}) = (..., {steps}))",
        f"shape {tuple(value.shape)}",
        f"{of} has shape {tuple(mu.shape)}; ranks decide: give values per step that all rows share as "
        f"{name}[None], and values per row that broadcast as {name}[..., None].",
    )


def _number(operation: str, name: str, value: Any, dtype: torch.dtype) -> float:
    """A number, plain or NumPy's, as `dtype` will hold it. NaN passes; what is no s and no rho does not."""
    if not isinstance(value, (int, float)) and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        got, remedy = _described(value), "Give it as torch.as_tensor(...)."
        _refuse(TypeError, operation, name, "a tensor or a number", got, remedy)
    limits = torch.finfo(dtype)
    if name == "s":
        # The density divides by s; a sample of s = 0 is mu.
        positive = operation == "ar1_log_prob"
        if value < (limits.tiny if positive else 0.0) or value > limits.max:
            expected = f"a finite number {'>' if positive else '>='} 0"
            _refuse(ValueError, operation, name, expected, _described(value), "It is a standard deviation.")
    elif name == "rho":
        if abs(value) >= 1.0 - limits.eps / 4.0:  # next to 1 numbers round to it
            got = f"{_described(value)} in {dtype}"
            remedy = "It is a correlation; rho_logit = atanh(rho) comes nearer to 1."
            _refuse(ValueError, operation, name, "a number of size below 1", got, remedy)
    elif abs(value) > limits.max and abs(value) != math.inf:
        return limits.max if value > 0 else limits.min  # of a logit that the type does not hold
    return value


_PROMOTED = frozenset((torch.float32, torch.bfloat16, torch.float16))


def promoted(value: Tensor, other: Tensor) -> Tensor:
    """In an autocast region the value in float32 if its type and the other's differ, as torch promotes."""
    types = {value.dtype, other.dtype}
    if len(types) == 1 or not types <= _PROMOTED:
        return value
    device = other.device.type
    promotes = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return value.float() if promotes else value


def same_device(operation: str, name: str, value: Tensor, mu: Tensor, of: str = "mu") -> None:
    if value.is_cpu and mu.is_cpu:  # spares two objects and their comparison
        return
    if value.device != mu.device:
        _refuse(
            ValueError,
            operation,
            name,
            f"on {of}'s device, {mu.device}",
            f"a tensor on {value.device}",
            f"Move it: {name}.to({of}.device).",
        )


def _check_leading(
    operation: str, mu: Tensor, scale: Tensor, rho: Tensor, scale_name: str, rho_name: str, mu_name: str
) -> None:
    try:
        broadcast_leading(mu, scale, rho)
    except RuntimeError:
        raise ValueError(
            f"{operation}: leading axes of {mu_name}, {scale_name} and {rho_name} must broadcast together, "
            f"but got {tuple(mu.shape[:-1])}, {tuple(parameter_leading(scale, mu))} and "
            f"{tuple(parameter_leading(rho, mu))} ({mu_name} of shape {tuple(mu.shape)}, "
            f"{scale_name} of shape {tuple(scale.shape)}, {rho_name} of shape {tuple(rho.shape)}). "
            "Make each of them equal or 1."
        ) from None


def sampling(
    operation: str,
    mu: Tensor,
    scale: Tensor,
    rho: Tensor,
    num_samples: int | None,
    generator: torch.Generator | None,
    key: Key | None,
    row_offset: int,
    eps: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, int]:
    """Checks what decides the noise: the key as a tensor, eps, row_offset as a signed 64-bit pattern."""
    if type(row_offset) is not int or row_offset != 0:
        row_offset = _pattern(operation, "row_offset", row_offset)
    sources = (key is not None) + (eps is not None) + (generator is not None)
    if sources > 1:
        names = [
            name
            for name, value in (("key", key), ("eps", eps), ("generator", generator))
            if value is not None
        ]
        raise ValueError(
            f"{operation}: at most one of key, eps and generator decides the noise, but got "
            f"{' and '.join(names)}. Drop all but one."
        )
    if eps is not None:
        eps = _given_noise(operation, mu, scale, rho, num_samples, eps)
    if generator is not None:
        _check_generator(operation, mu, generator)
    return (None if key is None else _key(operation, mu, scale, rho, key)), eps, row_offset


_MANY = 1 << 40


def samples(operation: str, num_samples: int, mu: Tensor) -> int:
    """Checks the number of samples and returns it as an int."""
    count = _integer(num_samples)
    if count is not None and count > _MANY and count * mu.numel() >= 1 << 56:
        expected = f"an int that leaves z fewer than 2^56 elements (mu has shape {tuple(mu.shape)})"
        got, remedy = _described(num_samples), "Draw them in parts."
        _refuse(ValueError, operation, "num_samples", expected, got, remedy)
    if count is None or not 1 <= count < _64_BITS // 2:
        _refuse(
            ValueError,
            operation,
            "num_samples",
            "an int >= 1 (and < 2^63) or None",
            _described(num_samples),
            "None draws one sample without an axis for it.",
        )
    return count


def _integer(value: Any) -> int | None:
    """An int, also one of NumPy's; None for anything else, a tensor included: its value would cost a sync."""
    if isinstance(value, (bool, Tensor)):
        return None
    if isinstance(value, (int, torch.SymInt)):
        return cast(int, value)
    try:
        return operator.index(value)
    except TypeError:
        return None


def _pattern(operation: str, name: str, value: int) -> int:
    """An unsigned 64-bit number as the signed one with the same bits."""
    number = _integer(value)
    if number is None or not 0 <= number < _64_BITS:
        _refuse(
            ValueError, operation, name, "an int in [0, 2^64)", _described(value), "It is a 64-bit counter."
        )
    return signed(number)


def signed(number: int) -> int:
    """The signed number with the bits of an unsigned one of 64."""
    return number - _64_BITS if number >= _64_BITS // 2 else number


def _given_noise(
    operation: str, mu: Tensor, scale: Tensor, rho: Tensor, num_samples: int | None, eps: Tensor
) -> Tensor:
    samples = [] if num_samples is None else [num_samples]
    shape = [*samples, *broadcast_leading(mu, scale, rho), mu.shape[-1]]
    if isinstance(eps, Tensor):
        _check_layout(operation, "eps", eps)
    if not isinstance(eps, Tensor) or list(eps.shape) != shape:
        got = f"shape {tuple(eps.shape)}" if isinstance(eps, Tensor) else _described(eps)
        _refuse(
            ValueError,
            operation,
            "eps",
            f"a tensor of z's shape {tuple(shape)}",
            got,
            "Expand it to that shape.",
        )
    if eps.dtype is not mu.dtype:
        eps = promoted(eps, mu)
    if eps.dtype is not mu.dtype and eps.dtype is not arithmetic_dtype(mu):
        _refuse(
            TypeError,
            operation,
            "eps",
            f"{mu.dtype} (as mu) or {arithmetic_dtype(mu)}",
            eps.dtype,
            "Convert it: eps.to(mu.dtype).",
        )
    same_device(operation, "eps", eps, mu)
    return eps


def _check_generator(operation: str, mu: Tensor, generator: torch.Generator) -> None:
    if not isinstance(generator, torch.Generator):
        _refuse(
            TypeError,
            operation,
            "generator",
            "a torch.Generator",
            _described(generator),
            "For a seed, give key=seed.",
        )
    if generator.device.type != mu.device.type:
        _refuse(
            ValueError,
            operation,
            "generator",
            f"on mu's device, {mu.device}",
            f"a generator on {generator.device}",
            f"Make it with torch.Generator({mu.device.type!r}).",
        )


_A_KEY = "a seed, a (seed, offset) pair of ints or a uint64 tensor of shape (2,) or (*rows, 2)"


def _key(operation: str, mu: Tensor, scale: Tensor, rho: Tensor, key: Key) -> Tensor:
    if isinstance(key, Tensor):
        if key.dtype is not torch.uint64 or key.dim() == 0 or key.shape[-1] != 2:
            remedy = "Make one with torch.tensor([seed, offset], dtype=torch.uint64)."
            _refuse(ValueError, operation, "key", _A_KEY, _described(key), remedy)
        if not key.is_cpu:
            same_device(operation, "key", key, mu)
        if key.dim() > 1:
            _check_rows_of_key(operation, key, broadcast_leading(mu, scale, rho))
        return key.contiguous()
    if (seed := _integer(key)) is not None:
        return _key_of_pair(operation, (seed, 0), _CPU)
    shape = (len(key),) if isinstance(key, (tuple, list)) else getattr(key, "shape", None)
    if shape != (2,):
        remedy = "Give for example key=seed, or fold_in(seed, step)."
        _refuse(ValueError, operation, "key", _A_KEY, _described(key), remedy)
    return _key_of_pair(operation, key, _CPU)


def _check_rows_of_key(operation: str, key: Tensor, lead: list[int]) -> None:
    own = key.shape[:-1]
    if len(own) != len(lead) or any(keys not in (1, size) for keys, size in zip(own, lead, strict=True)):
        expected = (
            f"of shape (2,), or a key per row: of shape ({', '.join(map(str, lead))}, 2), with 1 for the "
            "axes along which rows share a key"
        )
        remedy = "Add the missing axes, as in key[:, None]."
        _refuse(ValueError, operation, "key", expected, f"shape {tuple(key.shape)}", remedy)


_CPU = torch.device("cpu")  # keys made of numbers lie there, whatever the default device is


def _key_of_pair(operation: str, pair: Any, device: torch.device) -> Tensor:
    """The bits of both numbers, in int64: what the ops take."""
    seed, offset = pair
    patterns = (_pattern(operation, "key's seed", seed), _pattern(operation, "key's offset", offset))
    return torch.tensor(patterns, dtype=torch.int64, device=device)


def key_to_derive_from(operation: str, key: Key | int, device: torch.device) -> Tensor:
    """The key as a uint64 tensor of shape (..., 2): such a tensor, or from a seed or a pair on `device`."""
    if isinstance(key, Tensor):
        if key.dtype is not torch.uint64 or key.dim() == 0 or key.shape[-1] != 2:
            _refuse(
                ValueError,
                operation,
                "key",
                "a seed, a (seed, offset) pair of ints or a uint64 tensor of shape (..., 2)",
                _described(key),
                "Make one with torch.tensor([seed, offset], dtype=torch.uint64).",
            )
        return key
    return _key_of_pair(operation, pair_to_derive_from(operation, key), device).view(torch.uint64)


def pair_to_derive_from(operation: str, key: Any) -> tuple[Any, Any]:
    if (seed_alone := _integer(key)) is not None:
        return seed_alone, 0
    if not isinstance(key, (tuple, list)) or len(key) != 2:
        _refuse(
            TypeError,
            operation,
            "key",
            "a seed, a (seed, offset) pair of ints or a uint64 tensor of shape (..., 2)",
            _described(key),
            "Give for example key=7 or key=(7, 0).",
        )
    return key[0], key[1]


def folded_numbers(operation: str, key: Any, data: int) -> tuple[int, int, int]:
    """The seed, the offset and the data of a key made of plain numbers, as unsigned 64-bit numbers."""
    seed, offset = pair_to_derive_from(operation, key)
    named = (("key's seed", seed), ("key's offset", offset), ("data", data))
    first, second, third = (_pattern(operation, name, value) % _64_BITS for name, value in named)
    return first, second, third


def key_of_numbers(seed: int, offset: int) -> Tensor:
    """A uint64 key on the CPU from two unsigned 64-bit numbers."""
    return _key_of_pair("key", (seed, offset), _CPU).view(torch.uint64)


def folded_data(operation: str, key: Tensor, data: Tensor | int) -> Tensor:
    """The data as int64 patterns, on the key's device."""
    if not isinstance(data, Tensor):
        return torch.tensor(_pattern(operation, "data", data), dtype=torch.int64, device=key.device)
    if data.dtype not in _INTEGERS:
        _refuse(
            TypeError,
            operation,
            "data",
            "an int or a tensor of integers",
            _described(data),
            "Convert it, for example data.long().",
        )
    same_device(operation, "data", data, key, of="key")
    try:
        broadcast(key.shape[:-1], data.shape)
    except RuntimeError:
        raise ValueError(
            f"{operation}: data and the leading axes of key must broadcast together, but got shapes "
            f"{tuple(data.shape)} and {tuple(key.shape)}. Make them equal or 1, as in key[:, None]."
        ) from None
    return data.view(torch.int64) if data.dtype is torch.uint64 else data.long()


def split_count(operation: str, n: int) -> int:
    count = _integer(n)
    if count is None or not 1 <= count < _64_BITS // 2:
        _refuse(ValueError, operation, "n", "an int >= 1", _described(n), "It counts the keys to make.")
    return count


def density(operation: str, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor) -> None:
    """Checks the point of a log-density against parameters that are already checked."""
    if not isinstance(z, Tensor):
        _refuse(TypeError, operation, "z", "a tensor", _described(z), "Give it as torch.as_tensor(...).")
    _check_layout(operation, "z", z)
    if z.dtype is not mu.dtype:
        _refuse(TypeError, operation, "z", f"{mu.dtype} (as mu)", z.dtype, "Convert it: z.to(mu.dtype).")
    same_device(operation, "z", z, mu)
    if z.dim() == 0 or z.shape[-1] != mu.shape[-1]:
        _refuse(
            ValueError,
            operation,
            "z",
            f"of shape (..., d) with d = {mu.shape[-1]} as mu's",
            f"shape {tuple(z.shape)}",
            "The last axis is the chain.",
        )
    lead = broadcast_leading(mu, scale, rho)
    try:
        broadcast(z.shape[:-1], lead)
    except RuntimeError:
        _refuse(
            ValueError,
            operation,
            "z",
            f"of leading axes that broadcast with {tuple(lead)}",
            f"shape {tuple(z.shape)}",
            "Samples go in front: (K, *mu.shape).",
        )
