"""One call: how it is made, what it was, and whether what came of it is right."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import rhovae_ext
from tests.fuzz.rounding import Rounded
from tests.fuzz.truth import NoAnswerError, Problem, arithmetic, expected, keys_of

if TYPE_CHECKING:
    from tests.fuzz.draw import Draw

# How many times the error of rounding.py an answer may be off: roundings of one sign, steps that take two.
MARGIN = 16.0
# The KL is a sum of terms >= 0, each of them exact: 1e-6 of it in float32, at any length.
MARGIN_OF_KL = 8.0
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)
LONGEST_REFUSAL = 600
# What torch says when there is not so much memory in the world; it knows nothing of whose tensor it is.
OUT_OF_MEMORY = re.compile(
    "allocate|Storage size calculation overflowed|numel: integer multiplication overflow"
)


class Wrong(AssertionError):
    """A call that did what it must not."""


@dataclass
class Call:
    target: str  # a function's name, or an op's with rhovae:: in front
    arguments: dict[str, Any]
    problem: Problem
    kind: str
    extreme: bool = False
    backward: bool = False  # the op of the gradients itself
    wants: tuple[str, ...] = ()  # the arguments by which autograd differentiates
    generator_seed: int | None = None  # torch.manual_seed, for a draw from the default generator
    threads: int = 1
    setting: str = ""
    hostile: tuple[str, str] | None = None  # what kind of change was made to an ordinary call, and which
    must: str = "answer"  # or "refuse", or "either": refuse or answer rightly

    @staticmethod
    def of(draw: Draw, problem: Problem, kind: str, extreme: bool) -> Call:
        """The problem handed to one of those that serve it."""
        op = kind != "entropy" and draw.happens(0.45)
        op = op or (kind == "sample" and problem.logits and problem.kl == 0)
        call = _of_op(draw, problem, kind) if op else _of_function(draw, problem, kind)
        call.extreme = extreme
        call.threads = draw.one_of(1, 1, 2, 3, 4)
        if not call.backward and draw.happens(0.75):
            able = [n for n, v in call.arguments.items() if isinstance(v, Tensor) and v.is_floating_point()]
            call.wants = tuple(name for name in able if draw.happens(0.8))
        if not op and draw.happens(0.03):
            call.setting = draw.one_of("the default device is meta", "the default type is float64")
        return call

    @staticmethod
    def of_a_key(draw: Draw, like: Tensor) -> Call:
        seed = int(draw.rng.integers(2**31))
        arguments: dict[str, Any] = {"like": like, "generator": torch.Generator().manual_seed(seed)}
        if draw.happens(0.4):
            arguments["on_device"] = draw.happens(0.5)
        problem = Problem(like, 1.0, 0.0, key=_words_of_generator(seed))
        return Call("rhovae::draw_key", arguments, problem, "key")

    @property
    def is_op(self) -> bool:
        return self.target.startswith("rhovae::")

    def _function(self) -> Any:
        name = self.target.removeprefix("rhovae::")
        return getattr(torch.ops.rhovae if self.is_op else rhovae_ext, name)

    def _outputs(self, answer: Any) -> dict[str, Tensor]:
        p, values = self.problem, answer if isinstance(answer, tuple) else (answer,)
        names: tuple[str, ...] = ({"density": "log_prob"}.get(self.kind, self.kind),)
        if self.backward:
            names = ("dmu", "dscale", "drho")
            names = (*names, "deps") if self.kind == "sample" else ("dz", *names)
        elif self.kind == "sample":
            names = tuple(name for name, on in (("z", p.sample), ("kl", p.kl)) if on or self.is_op)
        if len(values) != len(names):
            raise Wrong(f"{len(values)} results, expected {', '.join(names)}")
        return dict(zip(names, values, strict=True))

    def _perform(self) -> dict[str, Tensor | None]:
        if self.generator_seed is not None:
            torch.manual_seed(self.generator_seed)
        arguments = dict(self.arguments)
        for name in self.wants:
            arguments[name] = arguments[name].detach().requires_grad_()
        outputs = self._outputs(self._function()(**arguments))
        answer: dict[str, Tensor | None] = {name: value.detach() for name, value in outputs.items()}
        if not self.wants:
            return answer
        p = self.problem
        cotangents = {"z": p.dz, "kl": p.dkl, "log_prob": p.dlog_prob, "entropy": p.dlog_prob}
        pairs = [
            (value, cotangents[name])
            for name, value in outputs.items()
            if cotangents[name] is not None and value.requires_grad
        ]
        gradients: tuple[Tensor | None, ...] = (None,) * len(self.wants)
        if pairs:
            gradients = torch.autograd.grad(
                [value for value, _ in pairs],
                [arguments[name] for name in self.wants],
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        return answer | {f"d{_plain(n)}": g for n, g in zip(self.wants, gradients, strict=True)}

    def run(self) -> dict[str, Tensor | None]:
        torch.set_num_threads(self.threads)
        with contextlib.ExitStack() as stack:
            if self.setting == "the default device is meta":
                stack.enter_context(torch.device("meta"))
            if self.setting == "the default type is float64":
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float64)
            return self._perform()

    def check(self) -> None:
        """Makes the call and raises Wrong where it neither answers rightly nor refuses as it should."""
        before = {name: _memory(value) for name, value in self.arguments.items()}
        try:
            answer = self.run()
        except REFUSALS as refusal:
            self._check_refusal(refusal)
            return
        for name, memory in before.items():
            after = _memory(self.arguments[name])
            if memory is not None and after is not None and not torch.equal(memory, after):
                raise Wrong(f"{name} was written to")
        if self.must == "refuse":
            raise Wrong("answered, though there is nothing to answer")
        try:
            self._check_answer(answer)
        except NoAnswerError as reason:
            raise Wrong(f"answered, though there is nothing to answer: {reason}") from None

    def _check_refusal(self, refusal: Exception) -> None:
        message = str(refusal)
        if self.must == "answer":
            raise Wrong(f"raised {type(refusal).__name__}: {message[:1500]}")
        if type(refusal) is RuntimeError and OUT_OF_MEMORY.search(message):
            return
        own = self.target.removeprefix("rhovae::")
        names = {own, "rhovae::ar1", "rhovae::ar1_log_prob", "rhovae::draw_key"}
        arguments = {*self.arguments, "s", "scale", "rho", "mu"}
        faults = [
            (len(message) >= LONGEST_REFUSAL, f"is {len(message)} characters long"),
            (len(message.strip().splitlines()) != 1, "has several lines"),
            (not any(name in message for name in names), f"does not name {own}"),
            (not any(re.search(rf"\b{name}\b", message) for name in arguments), "names no argument"),
        ]
        said = [fault for holds, fault in faults if holds]
        if said:
            raise Wrong(f"the refusal {' and '.join(said)}: {type(refusal).__name__}: {message[:300]}")

    def _check_answer(self, answer: dict[str, Tensor | None]) -> None:
        p = self.problem
        if self.kind == "key":
            key = answer["key"]
            if key is None or tuple(key.view(torch.uint64).tolist()) != p.key:
                raise Wrong(f"the key is {key}, expected {p.key}")
            return
        whole = {} if self.backward else expected(p, self.kind, False)
        gradients = expected(p, self.kind, True) if self.backward or self.wants else {}
        given = {"dmu": p.mu, "dscale": p.scale, "drho": p.rho, "deps": p.eps, "dz": p.z}
        for name, value in answer.items():
            wanted = (whole | gradients).get(name)
            like = given.get(name)
            dtype = (
                like.dtype if isinstance(like, Tensor) else p.mu.dtype if name == "z" else arithmetic(p.mu)
            )
            if value is None:
                if wanted is None or bool((wanted.value != 0).any()):
                    raise Wrong(f"{name}: no gradient came")
                continue
            if wanted is None:
                if tuple(value.shape) != (0,):
                    raise Wrong(f"{name} was not asked for and has shape {tuple(value.shape)}")
                continue
            if name == "deps" and self.backward and not self.arguments.get("needs_deps"):
                if value.numel():
                    raise Wrong(f"deps was not asked for and has shape {tuple(value.shape)}")
                continue
            compare(name, value, wanted, dtype, self._margin(name), self.extreme)

    def _margin(self, name: str) -> float:
        if name == "kl":
            return MARGIN_OF_KL
        # The reference scans by doubling, and rounds a step once a level.
        # Its scan by doubling, and torch's derivative of it, pass every number through log2(d) levels.
        # In float64 it has no wider type to work in.
        wide = self.problem.mu.dtype == torch.float64
        plain = (64 if wide else 6) * MARGIN
        return plain if self.arguments.get("backend") == "reference" else MARGIN

    def describe(self) -> str:
        lines = [f"{name}={described(value)}" for name, value in self.arguments.items()]
        p = self.problem
        if self.wants:
            lines.append(f"gradients by {', '.join(self.wants)}")
            lines += [f"{n}={described(g)}" for n, g in (("dz", p.dz), ("dkl", p.dkl)) if g is not None]
        if self.generator_seed is not None:
            lines.append(f"after torch.manual_seed({self.generator_seed})")
        lines += [f"threads: {self.threads}", *([self.setting] if self.setting else [])]
        head = f"{self.target} ({self.must}{', extreme' if self.extreme else ''})"
        head += f" [{self.hostile[0]}: {self.hostile[1]}]" if self.hostile else ""
        return "\n    ".join([head, *lines])


def _plain(name: str) -> str:
    """An argument's name as the ops have it."""
    return {"log_s": "scale", "s": "scale", "rho_logit": "rho"}.get(name, name)


def _memory(value: Any) -> Tensor | None:
    """All bytes of a tensor's memory."""
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.layout is not torch.strided:
        return None
    if type(value) not in (Tensor, torch.nn.Parameter) or value.is_quantized or value.is_nested:
        return None
    storage = value.detach().untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).clone()


def described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = f"{type(value).__name__} " if type(value) is not Tensor else ""
    text = f"{kind}{str(value.dtype).removeprefix('torch.')}"
    if value.layout is not torch.strided or value.is_nested:
        return f"{text} {'nested ' if value.is_nested else ''}{value.layout}"
    text += f" {tuple(value.shape)}"
    place = f" offset {value.storage_offset()}" if value.storage_offset() else ""
    strides = "" if value.is_contiguous() and not place else f" strides {tuple(value.stride())}"
    where = "" if value.device.type == "cpu" else f" on {value.device}"
    small = 0 < value.numel() <= 6 and not where and not value.is_quantized
    return text + strides + place + where + (f" {value.detach().tolist()}" if small else "")


def compare(
    name: str, actual: Tensor, wanted: Rounded, dtype: torch.dtype, margin: float, extreme: bool
) -> None:
    if actual.dtype != dtype or tuple(actual.shape) != wanted.value.shape:
        raise Wrong(f"{name} is {actual.dtype} {tuple(actual.shape)}, expected {dtype} {wanted.value.shape}")
    if actual.is_meta:
        return
    found = actual.detach().double().numpy()
    known = ~np.isnan(wanted.value)
    lost = np.isnan(found) & known
    if bool(lost.any()):
        raise Wrong(
            f"{name} has NaN at {_first(lost)} where {float(wanted.value[_first(lost)]):.6g} was expected"
        )
    if extreme:
        return
    info = torch.finfo(dtype)
    size = np.abs(wanted.value)
    limit = margin * wanted.error + float(info.eps) / 2 * size + float(info.smallest_normal) * 2.0**-8
    with np.errstate(all="ignore"):
        off = np.abs(found - wanted.value)
        bad = known & ~(off <= limit) & (size + limit < float(info.max))
    if bool(bad.any()):
        worst = np.unravel_index(np.argmax(np.where(bad, off / limit, 0)), bad.shape)
        raise Wrong(
            f"{name} at {tuple(int(i) for i in worst)} is {found[worst]:.9g}, expected "
            f"{float(wanted.value[worst]):.9g} within {float(limit[worst]):.3g} "
            f"({float(off[worst] / limit[worst]):.3g} times that; {int(bad.sum())} of {bad.size} elements)"
        )


def _first(where: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])


# The two ways of asking


def _key_tensor(draw: Draw, key: tuple[int, int], axes: tuple[int, ...] | None) -> Tensor:
    words = torch.from_numpy(keys_of(key, axes or ()))
    if draw.happens(0.3):
        strided = torch.full((*words.shape[:-1], 5), 77, dtype=torch.int64).view(torch.uint64)[..., 1::2]
        return strided.copy_(words)
    return words


def _of_function(draw: Draw, p: Problem, kind: str) -> Call:
    # A value per row that broadcasts has mu's rank there; the ops take it without.
    for name in ("scale", "rho"):
        given = getattr(p, name)
        if isinstance(given, Tensor) and 0 < given.dim() == p.mu.dim() - 1 and given.shape != p.mu.shape[:-1]:
            setattr(p, name, given.unsqueeze(-1))
    names = ("log_s", "rho_logit") if p.logits else ("s", "rho")
    suffix = "_with_logits" if p.logits else ""
    if kind == "entropy":
        return Call("ar1_entropy", {"s": p.scale, "rho": p.rho}, p, kind)
    arguments: dict[str, Any] = {"mu": p.mu, names[0]: p.scale, names[1]: p.rho}
    backend = draw.one_of(*[None] * 8, "auto", "native", "reference", "reference")
    if backend:
        arguments["backend"] = backend
    if kind == "density":
        return Call(f"ar1_log_prob{suffix}", {"z": p.z, **arguments}, p, kind)
    if p.kl and (p.kl == 2 or draw.happens(0.3)):
        arguments["per_dim"] = p.kl == 2
    if not p.sample:
        return Call(f"ar1_kl{suffix}", arguments, p, kind)
    target = f"ar1_reparam_kl{suffix}" if p.kl else "ar1_reparam"
    if p.num_samples is not None or draw.happens(0.2):
        arguments["num_samples"] = p.num_samples
    call = Call(target, arguments, p, kind)
    if p.eps is not None:
        arguments["eps"] = p.eps
        return call
    if p.row_offset or draw.happens(0.2):
        arguments["row_offset"] = p.row_offset
    assert p.key is not None
    source = draw.one_of("pair", "pair", "list", "tensor", "tensor", "generator", "default", "seed")
    if p.own_keys is not None:
        source = "tensor"
    if source in ("pair", "list"):
        arguments["key"] = p.key if source == "pair" else list(p.key)
    elif source == "tensor":
        arguments["key"] = _key_tensor(draw, p.key, p.own_keys)
    elif source == "seed":
        p.key = (p.key[0], 0)
        arguments["key"] = p.key[0]
    else:
        seed = p.key[0] % 2**32
        p.key = _words_of_generator(seed)
        if source == "default":
            call.generator_seed = seed
        else:
            arguments["generator"] = torch.Generator().manual_seed(seed)
    return call


def _words_of_generator(seed: int) -> tuple[int, int]:
    """The first two words of 64 bits that torch's generator gives."""
    bits = torch.empty(2, dtype=torch.int64)
    bits.random_(-(1 << 63), None, generator=torch.Generator().manual_seed(seed))
    return int(bits[0]) % 2**64, int(bits[1]) % 2**64


def _of_op(draw: Draw, p: Problem, kind: str) -> Call:
    dtype = draw.one_of(p.mu.dtype, torch.float32)
    for name in ("scale", "rho"):
        given = getattr(p, name)
        if not isinstance(given, Tensor):  # the ops take no numbers
            kept = min(max(given, -1 + 2.0**-8), 1 - 2.0**-8) if name == "rho" and not p.logits else given
            setattr(p, name, torch.tensor(kept, dtype=dtype))
    chain: dict[str, Any] = {"mu": p.mu, "scale": p.scale, "rho": p.rho}
    backward = draw.happens(0.5)
    if kind == "density":
        arguments = {"z": p.z, **chain, "logits": p.logits}
        if backward:
            arguments = {"dlog_prob": p.dlog_prob, **arguments}
        target = f"rhovae::ar1_log_prob{'_backward' if backward else ''}"
        return Call(target, arguments, p, kind, backward=backward)
    key = None if p.key is None else _key_tensor(draw, p.key, p.own_keys)
    if key is not None and draw.happens(0.5):
        key = key.view(torch.int64)
    offset = p.row_offset - 2**64 if p.row_offset >> 63 else p.row_offset
    chain |= {
        "key": key,
        "eps": p.eps,
        "num_samples": p.num_samples,
        "row_offset": offset,
        "logits": p.logits,
    }
    if not backward:
        return Call("rhovae::ar1", chain | {"sample": p.sample, "kl": p.kl}, p, kind)
    needs_deps = p.eps is not None and draw.happens(0.7)
    arguments = {"dz": p.dz, "dkl": p.dkl, **chain, "kl": p.kl, "needs_deps": needs_deps}
    return Call("rhovae::ar1_backward", arguments, p, kind, backward=True)
