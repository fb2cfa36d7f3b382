"""Calls with something wrong, or strange, about them: to be refused in a sentence, or answered rightly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.call import Call
from tests.fuzz.draw import Draw, ordinary

_TENSORS = ("like", "mu", "scale", "s", "log_s", "rho", "rho_logit", "eps", "z", "dz", "dkl", "dlog_prob")
_IN_PROBLEM = {"s": "scale", "log_s": "scale", "rho_logit": "rho"}
_HUGE = (2**40, 2**62, 2**63 - 1)


class Subclass(torch.Tensor):
    """A tensor by another name."""


class _Unfit(Exception):
    """This change cannot be made to this call."""


Change = Callable[[Draw, Call], str]


def hostile(seed: int, number: int) -> Call:
    call, draw = ordinary(seed, number), Draw(seed, number + 2**40)
    changes = (sparse, subclass, negated_view) if call.kind == "key" else _CHANGES
    for _ in range(100):
        change = draw.one_of(*changes)
        candidate = replace(
            call, arguments=dict(call.arguments), problem=replace(call.problem), must="either"
        )
        try:
            said = change(draw, candidate)
        except _Unfit:
            continue
        if draw.happens(0.8):
            candidate.wants = ()
        candidate.hostile = (change.__name__, said)
        return candidate
    return call


def _names(call: Call, tensors: tuple[str, ...] = _TENSORS) -> list[str]:
    found = [name for name in tensors if isinstance(call.arguments.get(name), Tensor)]
    steps = call.problem.mu.shape[-1]
    # The correlation of a chain of one step is nobody's.
    return [name for name in found if steps > 1 or not name.startswith("rho")]


def _pick(draw: Draw, call: Call, tensors: tuple[str, ...] = _TENSORS) -> tuple[str, Tensor]:
    names = _names(call, tensors)
    if not names:
        raise _Unfit
    name = draw.one_of(*names)
    return name, call.arguments[name]


def _give(call: Call, name: str, value: Any) -> None:
    """To the call and to the truth."""
    call.arguments[name] = value
    plain = _IN_PROBLEM.get(name, name)
    if call.kind == "entropy" and plain == "scale" and isinstance(value, Tensor) and value.dim():
        call.problem.mu = torch.zeros(value.shape, dtype=value.dtype)
    if hasattr(call.problem, plain):
        setattr(call.problem, plain, value)


def _refuse(call: Call, name: str, value: Any) -> None:
    call.arguments[name] = value
    call.wants = tuple(wanted for wanted in call.wants if wanted != name)
    call.must = "refuse"


def _only(condition: bool) -> None:
    if not condition:
        raise _Unfit


# Tensors of the wrong kind


def another_type(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call)
    dtype = draw.one_of(
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32
    )
    dtype = dtype if draw.happens(0.6) else draw.one_of(torch.int64, torch.int8, torch.bool, torch.complex64)
    _only(dtype != given.dtype)
    if not dtype.is_floating_point:
        _refuse(call, name, given.to(dtype))
    else:
        _give(call, name, given.to(dtype))
        if name == "mu":  # what is to come of it is another type's
            call.wants = ()
    return f"{name} of {dtype}"


def on_meta(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call, (*_TENSORS, "key"))
    _only(len(_names(call)) > 1 and given.numel() > 0)
    _refuse(call, name, given.to("meta"))
    return f"{name} on meta"


def all_on_meta(draw: Draw, call: Call) -> str:
    for name, value in call.arguments.items():
        if isinstance(value, Tensor) and (name != "key" or draw.happens(0.5)):
            call.arguments[name] = value.to("meta")
    _only("generator" not in call.arguments and call.arguments.get("backend") != "native")
    call.wants = ()
    return "all on meta"


def sparse(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call)
    kinds: tuple[Callable[[Tensor], Tensor], ...] = (
        Tensor.to_sparse,
        Tensor.to_sparse_csr,
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda t: t.to_mkldnn(),
        lambda t: torch.nested.nested_tensor(list(t.unbind(0)), layout=torch.jagged),
        lambda t: torch.nested.nested_tensor(list(t.unbind(0))),
    )
    try:
        changed = draw.one_of(*kinds)(given.detach())
    except (RuntimeError, IndexError, ValueError):
        raise _Unfit from None
    _only(given.dim() > 0 and given.numel() > 0)
    _refuse(call, name, changed)
    if name == "like":  # of which the device alone counts
        call.must = "either"
    return f"{name} not dense"


def negated_view(draw: Draw, call: Call) -> str:
    """A view whose numbers are the negatives of what memory holds."""
    name, given = _pick(draw, call)
    _only(given.dtype in (torch.float32, torch.float64) and given.numel() > 0)
    changed = torch.complex(torch.ones_like(given), -given).conj().imag
    _only(changed.is_neg())
    _give(call, name, changed)
    return f"{name} with the negative bit"


def subclass(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call)
    changed = torch.nn.Parameter(given.detach()) if draw.happens(0.3) else given.as_subclass(Subclass)
    _give(call, name, changed)
    return f"{name} a {type(changed).__name__}"


def graph_view(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call)
    leaf = given.detach().clone().requires_grad_()
    _give(call, name, (leaf * 1).view_as(leaf))
    call.wants = ()
    return f"{name} with a history"


def the_same_memory(draw: Draw, call: Call) -> str:
    """Two arguments that are one tensor."""
    first, given = _pick(draw, call)
    second, other = _pick(draw, call)
    _only(first != second and given.shape == other.shape and given.dtype == other.dtype)
    natural = not call.problem.logits
    _only(not natural or not {first, second} & {"s", "scale", "rho"})
    _give(call, second, given)
    return f"{second} is {first}"


# Shapes


def another_shape(draw: Draw, call: Call) -> str:
    name, given = _pick(draw, call)
    axis = int(draw.rng.integers(given.dim())) if given.dim() else 0

    def longer(t: Tensor) -> Tensor:
        return torch.cat((t, t.narrow(axis, 0, 1)), axis)

    shapes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t[None],
        lambda t: t[..., None],
        lambda t: t.select(axis, 0),
        lambda t: t.narrow(axis, 0, 0),
        lambda t: t.narrow(axis, 0, 1),
        lambda t: t.narrow(axis, 0, t.shape[axis] - 1),
        lambda t: t.transpose(axis, 0),
        lambda t: t.reshape(-1),
        lambda t: t.expand(2, *t.shape),
        longer,
        lambda t: t.new_ones(()),
    )
    try:
        changed = draw.one_of(*shapes)(given.detach())
    except (RuntimeError, IndexError):
        raise _Unfit from None
    _only(changed.shape != given.shape and changed.numel() < 10**5)
    _give(call, name, changed)
    try:
        p = call.problem
        leads = [draw.lead_of(p), *([] if p.z is None else [tuple(p.z.shape[:-1])])]
        together = math.prod(np.broadcast_shapes(*leads)) * p.mu.shape[-1]
    except (RuntimeError, ValueError, IndexError):
        together = 0  # to be refused
    _only(together < 10**6)
    call.wants = ()
    return f"{name} of shape {tuple(changed.shape)} for {tuple(given.shape)}"


def no_steps(draw: Draw, call: Call) -> str:
    name = "s" if call.kind == "entropy" else "mu"
    given = call.arguments[name]
    _refuse(call, name, given.narrow(-1, 0, 0) if draw.happens(0.7) else given.new_ones(()))
    return f"{name} without steps"


def huge(draw: Draw, call: Call) -> str:
    """2^40 rows and more, all of them one number in memory."""
    name, given = _pick(draw, call)
    p = call.problem
    _only(call.kind != "sample" or p.sample or p.kl > 0)
    _only(name not in ("scale", "rho", "s", "log_s", "rho_logit") or given.dim() >= p.mu.dim())
    rows = (2**40,) if draw.happens(0.6) else (2**31, 2**31)
    # Nothing is zero rows, however many times over.
    _only(given.numel() > 0 and draw.lead_of(p) != () and 0 not in draw.lead_of(p))
    try:
        _refuse(call, name, given.detach().expand(*rows, *given.shape))
    except RuntimeError:  # more than 2^63 elements
        raise _Unfit from None
    call.wants = ()
    return f"{name} expanded to {rows} times itself"


# Numbers and options


def samples(draw: Draw, call: Call) -> str:
    _only("num_samples" in call.arguments or call.target.startswith("ar1_reparam"))
    p = call.problem
    if draw.happens(0.3) and p.num_samples is not None:
        wanted: Any = p.num_samples + draw.one_of(-1, 1)
    else:
        wanted = draw.one_of(0, -1, *_HUGE)
        if not call.is_op:
            wanted = draw.one_of(wanted, 2**63, 1.5, True, "3", np.int64(2))
    _only(wanted != p.num_samples)
    _only(0 not in draw.lead_of(p) or wanted not in _HUGE)  # nothing at all, of which there are many
    call.arguments["num_samples"] = wanted
    p.num_samples = wanted
    if isinstance(wanted, np.int64):
        p.num_samples = 2
        call.wants = ()
        _only(p.eps is None)
    elif not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1 or wanted > 10**6:
        call.must = "refuse"
        uses = p.dz is not None or p.eps is not None if call.backward else p.sample
        if isinstance(wanted, int) and wanted > 0 and (not uses or 0 in draw.lead_of(p)):
            call.must = "either"
    if call.wants:
        call.wants = ()
    return f"num_samples {wanted!r}"


def kl_kind(draw: Draw, call: Call) -> str:
    _only("kl" in call.arguments)
    kind = draw.one_of(3, 7, -1, 2**32, 2**32 + 1, 2**40, -(2**63), 0, 1, 2)
    _only(kind != call.problem.kl)
    call.arguments["kl"] = kind
    if kind in (0, 1, 2):
        call.problem.kl = kind
        call.wants = ()
        _only(call.problem.dkl is None or kind != 0)
    else:
        call.must = "refuse"
    return f"kl {kind}"


def deps_without_eps(draw: Draw, call: Call) -> str:
    _only("needs_deps" in call.arguments)
    call.arguments["needs_deps"] = True
    if call.arguments["eps"] is not None:
        _only(draw.happens(0.5))
        call.arguments["eps"] = None
    call.must = "refuse"
    return "needs_deps without eps"


def broken_key(draw: Draw, call: Call) -> str:
    p = call.problem
    _only(
        p.key is not None
        and ("key" in call.arguments or not call.is_op)
        and "generator" not in call.arguments
    )
    good = torch.tensor([1, 2]).view(torch.uint64)
    keys: tuple[Any, ...] = (
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.zeros(3, dtype=torch.uint64),
        torch.zeros(1, dtype=torch.uint64),
        torch.zeros(0, dtype=torch.uint64),
        torch.zeros((), dtype=torch.uint64),
        torch.zeros(2, 1, dtype=torch.uint64),
        torch.zeros(99991, 2, dtype=torch.uint64),
        good.to("meta"),
        torch.eye(2).to_sparse(),
    )
    if not call.is_op:
        keys += (
            torch.tensor([1, 2]),
            -7,
            2**64,
            7.0,
            True,
            (1,),
            (1, 2, 3),
            (-1, 0),
            (2**64, 0),
            (1.5, 0),
            ("a", 0),
            "ab",
            (True, 0),
            (None, 1),
            {},
            [[1], 2],
        )
        keys += ((torch.tensor(1.5), 0), (torch.arange(4), 0))
    call.arguments["key"] = draw.one_of(*keys)
    call.generator_seed = None
    needed = (p.dz is not None if call.backward else p.sample) or not call.is_op
    call.must = "refuse" if needed else "either"
    return "a broken key"


def no_key(draw: Draw, call: Call) -> str:
    _only(call.is_op and call.arguments.get("key") is not None and call.problem.eps is None)
    _only(call.problem.dz is not None if call.backward else call.problem.sample)
    call.arguments["key"] = None
    call.must = "refuse"
    return "neither key nor eps"


def two_sources(draw: Draw, call: Call) -> str:
    _only(call.target.startswith("ar1_reparam"))
    chosen = {"key": (1, 2), "generator": torch.Generator()}
    given = [name for name in ("key", "eps", "generator") if name in call.arguments]
    _only(len(given) == 1)
    name = draw.one_of(*[name for name in chosen if name not in given])
    _refuse(call, name, chosen[name])
    return f"{name} and {given[0]}"


def option(draw: Draw, call: Call) -> str:
    """Options of the functions that are no such thing."""
    _only(not call.is_op)
    choices: dict[str, tuple[Any, ...]] = {"backend": ("cuda", "NATIVE", "", 7, b"native", torch.zeros(2))}
    if call.target == "ar1_entropy":
        raise _Unfit
    if call.target.startswith("ar1_reparam"):
        choices["row_offset"] = (-1, 2**64, 0.5, True, "1", None, torch.arange(4), 0.0, torch.tensor(1.5))
        choices["generator"] = (7, "cpu", torch.default_generator.get_state(), object)
    name = draw.one_of(*choices)
    if name == "generator":
        for other in ("key", "eps"):
            call.arguments.pop(other, None)
        call.problem.eps = None
        call.wants = ()
    _refuse(call, name, draw.one_of(*choices[name]))
    return f"{name} {call.arguments[name]!r}"


def counted(draw: Draw, call: Call) -> str:
    """Whole numbers that are no ints of Python's."""
    _only(call.target.startswith("ar1_reparam") and call.problem.eps is None)
    number = int(draw.rng.integers(2**31))
    call.arguments["row_offset"] = draw.one_of(np.int64(number), np.uint64(number), torch.tensor(number))
    call.problem.row_offset = number
    return f"row_offset {call.arguments['row_offset']!r}"


def number(draw: Draw, call: Call) -> str:
    """Parameters given as numbers of every kind."""
    _only(not call.is_op)
    logits = call.problem.logits
    name = draw.one_of(*[n for n in ("s", "log_s", "rho", "rho_logit") if n in call.arguments])
    _only(call.kind != "entropy" or name == "rho")
    rightly: tuple[Any, ...] = (np.float32(0.5), np.float64(0.5), 0.5)
    if logits or name == "s":
        rightly += (1, np.int64(1))
    if logits or name == "rho":
        rightly += (0, -0.5, np.int32(0))
    wrongly: tuple[Any, ...] = ("1", True, None, [0.5], (0.5,), 1j, np.zeros(2), b"1", object)
    if not logits:
        wrongly += (1.5, -1.0, 1) if name == "rho" else (-1, -0.5, float("-inf"))  # NaN in, NaN out
        wrongly += (float("inf"),)
    value = draw.one_of(*rightly) if draw.happens(0.5) else draw.one_of(*wrongly)
    if any(value is one for one in rightly):
        _give(call, name, value)
        setattr(call.problem, _IN_PROBLEM.get(name, name), float(value))
        call.must = "answer"
    else:
        _refuse(call, name, value)
    call.wants = tuple(wanted for wanted in call.wants if wanted != name)
    # Rows that only this parameter had are gone.
    if call.problem.eps is not None or call.problem.own_keys is not None or call.wants:
        call.wants = ()
        call.must = "either" if call.must == "answer" else call.must
    return f"{name} {value!r}"


def no_tensor(draw: Draw, call: Call) -> str:
    _only(not call.is_op)
    name = draw.one_of(*_names(call, ("mu", "z", "eps")) or ["mu"])
    _only(name in call.arguments)
    values = (None, 1.0, [0.5, 0.5], np.zeros((2, 2)), "mu", object)
    value = draw.one_of(*values)
    _only(value is not None or name != "eps")
    _refuse(call, name, value)
    call.wants = ()
    return f"{name} {value!r}"


_CHANGES: tuple[Change, ...] = (
    another_type,
    another_type,
    on_meta,
    on_meta,
    all_on_meta,
    sparse,
    negated_view,
    subclass,
    graph_view,
    the_same_memory,
    another_shape,
    another_shape,
    another_shape,
    no_steps,
    huge,
    samples,
    samples,
    kl_kind,
    deps_without_eps,
    broken_key,
    no_key,
    two_sources,
    option,
    counted,
    number,
    no_tensor,
)
