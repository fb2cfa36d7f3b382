"""What a call has to answer, from the formulas of sections 2 and 3 of the contract, gradients written out.

Nothing of the library is used, and no automatic differentiation. Beside every number stands the error that
the arithmetic of the call's type must be granted (rounding.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.fuzz.noise import normals, rows_of
from tests.fuzz.rounding import REAL, Array, Rounded, recur

NO_KL, KL_PER_ROW, KL_PER_DIM = 0, 1, 2
_LOG_2, _LOG_2_PI = np.log(REAL(2)), np.log(4 * np.arccos(REAL(0)))


class NoAnswerError(Exception):
    """The call has none: it had to be refused."""


@dataclass
class Problem:
    """What is asked: the arguments of the ops by name, whoever is called."""

    mu: Tensor
    scale: Tensor | float
    rho: Tensor | float
    logits: bool = False
    sample: bool = True
    kl: int = NO_KL
    num_samples: int | None = None
    key: tuple[int, int] | None = None
    own_keys: tuple[int, ...] | None = None  # leading axes of the keys: 1 where rows share one
    row_offset: int = 0
    eps: Tensor | None = None
    z: Tensor | None = None  # where log q(z) is asked for
    dz: Tensor | None = None
    dkl: Tensor | None = None
    dlog_prob: Tensor | None = None


def keys_of(key: tuple[int, int], axes: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """(*axes, 2): distinct keys that begin with `key`."""
    number = np.arange(math.prod(axes), dtype=np.uint64).reshape(axes)
    words = (np.uint64(key[0]) + number, np.uint64(key[1]) + np.uint64(3) * number)
    return np.stack(words, -1)


def arithmetic(mu: Tensor) -> torch.dtype:
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def numbers(value: Tensor | float) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().resolve_neg().as_subclass(Tensor)
        return value.double().numpy().astype(REAL)
    return np.asarray(value, REAL)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise NoAnswerError(what)


def _broadcast(array: Array, shape: tuple[int, ...], what: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise NoAnswerError(f"{what} of shape {array.shape} does not broadcast to {shape}") from None


def _expm1_less(y: Array) -> Array:
    """exp(y) - 1 - y, without the cancellation at 0."""
    small = np.abs(y) < 0.5
    series, power = np.zeros_like(y), np.where(small, y, 0)
    for n in range(24, 1, -1):
        series = (1 + series) * power / n
    return np.where(small, series * power, np.expm1(y) - y)


def _less_log1p(w: Array) -> Array:
    """w - log(1 + w), without the cancellation at 0."""
    small = np.abs(w) < 0.1
    base = np.where(small, w, 0)
    series = np.zeros_like(w)
    for n in range(24, 1, -1):
        series = (REAL((-1) ** n) / n + series) * base
    return np.where(small, series * base, w - np.log1p(w))


@dataclass
class Chain:
    """The three parameters over (lead..., d), (lead..., 1 or d) and (lead..., 1 or d-1), and what follows."""

    problem: Problem
    steps: int
    lead: tuple[int, ...]
    unit: float
    mu: Rounded
    s: Rounded
    log_s: Rounded
    rho: Rounded
    c: Rounded  # sqrt(1 - rho^2)
    minus_log_c: Rounded
    kl_of_scale: Rounded  # (s^2 - 1)/2 - log s
    marks: Array  # (lead..., 1): 0, and NaN in the rows that have NaN somewhere

    @property
    def row(self) -> tuple[int, ...]:
        return (*self.lead, self.steps)

    def give(self, gradient: Rounded, to: Tensor | float, per_step: int) -> Rounded:
        """A gradient over (K?, lead..., d or d-1), summed to what was given."""
        shape = tuple(to.shape) if isinstance(to, Tensor) else ()
        rank = self.problem.mu.dim()
        kept = (1,) if shape == () else (*shape, 1) if len(shape) == rank - 1 else shape
        if per_step == 0:
            return Rounded.exact(np.zeros(shape), self.unit)
        return gradient.sum_to(kept).apply(lambda values: values.reshape(shape))


def chain_of(p: Problem) -> Chain:
    _require(p.mu.dim() >= 1 and p.mu.shape[-1] >= 1, "mu has no steps")
    unit = float(torch.finfo(arithmetic(p.mu)).eps) / 2
    mu, scale, rho = numbers(p.mu), numbers(p.scale), numbers(p.rho)
    steps = mu.shape[-1]

    def aligned(value: Array, per_step: int, name: str) -> Array:
        if value.ndim == 0:
            return value.reshape(1)
        if value.ndim == mu.ndim - 1:
            return value[..., None]
        _require(value.ndim >= mu.ndim and value.shape[-1] in (1, per_step), f"{name} of shape {value.shape}")
        return value

    scale, rho = aligned(scale, steps, "scale"), aligned(rho, steps - 1, "rho")
    leads = [mu.shape[:-1], scale.shape[:-1], rho.shape[:-1]]
    if p.z is not None:
        _require(p.z.dim() >= 1 and p.z.shape[-1] == steps, f"z of shape {tuple(p.z.shape)}")
        leads.append(tuple(p.z.shape[:-1]))
    try:
        lead = np.broadcast_shapes(*leads)
    except ValueError:
        raise NoAnswerError(f"leading axes {leads}") from None
    rho = rho[..., :0] if steps == 1 else rho
    # NaN in a row is NaN in all of it, as |rho| >= 1 is: which of its numbers are is nobody's promise.
    size = np.abs(rho)
    marks = 0 * mu.sum(-1, keepdims=True) + 0 * scale.sum(-1, keepdims=True) + 0 * rho.sum(-1, keepdims=True)
    if not p.logits and rho.size:
        marks = marks + np.where(size.max(-1, keepdims=True) < 1, 0, np.nan)
    mu = _broadcast(mu, (*lead, steps), "mu") + marks

    def exact(value: Array) -> Rounded:
        return Rounded.exact(value, unit)

    given = exact(scale)
    if p.logits:
        s, log_s = given.rounded(np.exp(scale)), given
        kl_of_scale = given.rounded(_expm1_less(2 * scale) / 2)
        q = np.exp(-2 * size)
        c = exact(rho).rounded(2 * np.exp(-size) / (1 + q), 3)
        # Of no more digits than 1 - |rho| leaves it: near 0 it is as exact as a number near 1.
        tanh = np.copysign(-np.expm1(-2 * size) / (1 + q), rho)
        correlation = Rounded(tanh, np.full_like(tanh, 2 * unit), unit)
        near = 0.5 * np.log1p(np.sinh(np.minimum(size, 1)) ** 2)
        minus_log_c = exact(rho).rounded(np.where(size < 0.5, near, size + np.log1p(q) - _LOG_2))
    else:
        s, log_s = given, given.rounded(np.log(scale))
        w = scale - 1
        kl_of_scale = given.rounded(w * w / 2 + _less_log1p(w))
        correlation = exact(rho)
        c = correlation.rounded(np.sqrt((1 - rho) * (1 + rho)))
        square = np.where(size < 0.5, np.log1p(-rho * rho), np.log1p(-rho) + np.log1p(rho))
        minus_log_c = correlation.rounded(-square / 2)
    return Chain(p, steps, lead, unit, exact(mu), s, log_s, correlation, c, minus_log_c, kl_of_scale, marks)


def _padded(values: Rounded, front: float, steps: int) -> Rounded:
    """(..., 1 or d-1) over the steps 2..d to (..., d), with `front` at the first."""

    def pad(array: Array, first: float) -> Array:
        whole = np.broadcast_to(array, (*array.shape[:-1], steps - 1))
        return np.concatenate((np.full((*array.shape[:-1], 1), first, REAL), whole), -1)

    return Rounded(pad(values.value, front), pad(values.error, 0), values.unit)


def _as_a_difference(rho: Rounded) -> Rounded:
    """The derivative of -log(1 - rho^2)/2 may be had from 1/(1 - rho) - 1/(1 + rho)."""
    return Rounded(rho.value, np.full_like(rho.value, 2 * rho.unit), rho.unit)


def _eps(chain: Chain) -> Rounded:
    p, samples = chain.problem, () if chain.problem.num_samples is None else (chain.problem.num_samples,)
    if p.eps is not None:
        _require(tuple(p.eps.shape) == (*samples, *chain.row), f"eps of shape {tuple(p.eps.shape)}")
        eps = numbers(p.eps)
        return Rounded.exact(eps + 0 * eps.sum(-1, keepdims=True) + chain.marks, chain.unit)
    _require(p.key is not None, "neither key nor eps")
    assert p.key is not None
    double, shape = p.mu.dtype == torch.float64, (*samples, *chain.row)
    if p.own_keys is None:
        rows = rows_of(math.prod(chain.lead), p.row_offset, p.num_samples)
        eps, slack = normals(*p.key, rows, chain.steps, double)
    else:
        eps, slack = _with_own_keys(p, p.key, p.own_keys, chain.lead, chain.steps)
    # The slack is an absolute bound, not a rounding: here is the margin taken back.
    return Rounded(eps.reshape(shape), slack.reshape(shape).astype(REAL) / 16, chain.unit)


def _with_own_keys(
    p: Problem, key: tuple[int, int], axes: tuple[int, ...], lead: tuple[int, ...], steps: int
) -> tuple[Array, Array]:
    """Each key's rows as a batch of their own, put where they belong."""
    fits = len(axes) == len(lead) and all(own in (1, size) for own, size in zip(axes, lead, strict=True))
    _require(fits, f"keys of shape {axes} for rows of {lead}")
    keys, samples = keys_of(key, axes), () if p.num_samples is None else (p.num_samples,)
    both = np.zeros((2, *samples, *lead, steps), REAL)
    for place in np.ndindex(*axes):
        own = [at if size > 1 else slice(None) for at, size in zip(place, axes, strict=True)]
        part = both[tuple([slice(None)] * (1 + len(samples)) + own)]
        count = part[0].size // max(1, steps * math.prod(samples))
        seed, offset = (int(word) for word in keys[place])
        drawn = normals(
            seed, offset, rows_of(count, p.row_offset, p.num_samples), steps, p.mu.dtype == torch.float64
        )
        part[:] = np.stack(drawn).reshape(part.shape)
    return both[0], both[1]


def _gradient(given: Tensor, shape: tuple[int, ...], rows: bool, what: str) -> Array:
    _require(given.dim() == len(shape), f"{what} of shape {tuple(given.shape)} for {shape}")
    values = _broadcast(numbers(given), shape, what)
    return values if rows else values + 0 * values.sum(-1, keepdims=True)


def sampled(p: Problem, backward: bool) -> dict[str, Rounded]:
    """z and kl, and with `backward` the gradients by every input, of dz and dkl where they are given."""
    chain, unit = chain_of(p), 0.0
    unit, steps, d = chain.unit, chain.steps, chain.steps
    answer: dict[str, Rounded] = {}
    half = Rounded.exact(np.asarray(0.5), unit)
    rho, c = _padded(chain.rho, 0, d), _padded(chain.c, 1, d)
    if p.kl and not backward:
        tied = _padded(chain.minus_log_c, 0, d)
        kl = half * chain.mu * chain.mu + chain.kl_of_scale + tied
        kl = kl.apply(lambda values: np.broadcast_to(values, chain.row))
        if p.kl == KL_PER_ROW:
            kl = kl.sum((kl.value.ndim - 1,)).apply(lambda values: values[..., 0])
        answer["kl"] = kl
    needs_x = (p.sample and not backward) or p.dz is not None
    if needs_x:
        eps = _eps(chain)
        x = recur(rho, c * eps)
        if not backward:
            answer["z"] = chain.mu + chain.s * x
    if not backward:
        return answer

    by_mu = by_scale = by_rho = Rounded.exact(np.zeros(chain.row), unit)
    by_rho = by_rho[..., 1:]
    by_eps = None
    if p.dz is not None:
        samples = () if p.num_samples is None else (p.num_samples,)
        given = _gradient(p.dz, (*samples, *chain.row), False, "dz") + 0 * eps.value + chain.marks
        g = Rounded.exact(given, unit)
        adjoint = recur(_ahead(rho[..., 1:]), g * chain.s, backwards=True)
        tangent = chain.c * (chain.c * x[..., :-1] - chain.rho * eps[..., 1:])
        by_mu = by_mu + g.sum_to(chain.row)
        by_scale = by_scale + (g * x * chain.s if p.logits else g * x).sum_to(chain.row)
        drho = adjoint[..., 1:] * tangent
        if not isinstance(p.rho, Tensor) or chain.rho.value.shape[-1] == 1:
            # One rho a row: a tangent that runs along is rounded at every step as well.
            t = recur(chain.rho, tangent)
            along = unit * np.abs(adjoint.value[..., 1:] * t.value)
            drho = Rounded(drho.value, drho.error + along, unit)
        by_rho = by_rho + (drho if p.logits else drho / (chain.c * chain.c)).sum_to((*chain.lead, d - 1))
        by_eps = c * adjoint
    if p.dkl is not None:
        per_dim = p.kl == KL_PER_DIM
        shape = chain.row if per_dim else chain.lead
        values = _gradient(p.dkl, shape, not per_dim, "dkl")
        h = Rounded.exact((values if per_dim else values[..., None]) + chain.marks, unit)
        one = Rounded.exact(np.asarray(1.0), unit)
        s = chain.s
        by_mu = by_mu + h * chain.mu
        by_scale = by_scale + h * (s * s - one if p.logits else s - one / s)
        tied_h = h[..., 1:] if per_dim else h
        tied = tied_h * _as_a_difference(chain.rho)
        by_rho = by_rho + (tied if p.logits else tied / (chain.c * chain.c))
    answer["dmu"] = by_mu.sum_to(tuple(p.mu.shape))
    answer["dscale"] = chain.give(by_scale, p.scale, steps)
    answer["drho"] = chain.give(by_rho, p.rho, steps - 1)
    if p.eps is not None:
        answer["deps"] = by_eps if by_eps is not None else Rounded.exact(np.zeros(p.eps.shape), unit)
    return answer


def _ahead(values: Rounded) -> Rounded:
    """(..., d-1) over the steps 2..d, moved to the steps before them; nothing follows the last."""
    return values.apply(lambda array: np.concatenate((array, np.zeros((*array.shape[:-1], 1), REAL)), -1))


def density(p: Problem, backward: bool) -> dict[str, Rounded]:
    """log q(z), or with `backward` the gradients by every input, of dlog_prob."""
    chain, z = chain_of(p), p.z
    assert z is not None
    unit, d = chain.unit, chain.steps
    rho, c = _padded(chain.rho, 0, d), _padded(chain.c, 1, d)
    at = numbers(z)
    at = np.broadcast_to(at + 0 * at.sum(-1, keepdims=True), chain.row)
    x = (Rounded.exact(at, unit) - chain.mu) / chain.s
    before = _padded(x[..., :-1], 0, d)
    eps = (x - rho * before) / c
    if not backward:
        half, constant = (Rounded.exact(np.asarray(value), unit) for value in (0.5, _LOG_2_PI / 2))
        terms = half * eps * eps + constant + chain.log_s - _padded(chain.minus_log_c, 0, d)
        total = -terms.sum((terms.value.ndim - 1,)).apply(lambda values: values[..., 0])
        # log s and log c cancel the squares, and may be summed before or after them.
        parts = np.broadcast_to(np.abs(chain.log_s.value), chain.row).sum(-1)
        parts = parts + np.abs(_padded(chain.minus_log_c, 0, d).value).sum(-1) + d
        return {"log_prob": Rounded(total.value, total.error + unit * parts, unit)}
    assert p.dlog_prob is not None
    h = Rounded.exact(_gradient(p.dlog_prob, chain.lead, True, "dlog_prob")[..., None], unit)
    pull = eps / c
    by_x = _ahead(chain.rho * pull[..., 1:]) - pull
    one = Rounded.exact(np.asarray(1.0), unit)
    by_z = h * by_x / chain.s
    by_log_s = -(h * (by_x * x + one))
    by_logit = h * (eps[..., 1:] * (chain.c * x[..., :-1] - chain.rho * eps[..., 1:]) + chain.rho)
    by_rho = by_logit if p.logits else by_logit / (chain.c * chain.c)
    return {
        "dz": by_z.sum_to(tuple(z.shape)),
        "dmu": (-by_z).sum_to(tuple(p.mu.shape)),
        "dscale": chain.give(by_log_s if p.logits else by_log_s / chain.s, p.scale, d),
        "drho": chain.give(by_rho, p.rho, d - 1),
    }


def entropy(p: Problem, backward: bool) -> dict[str, Rounded]:
    """The entropy of the chain whose scale is per step (mu stands for its shape), or its gradients."""
    chain = chain_of(p)
    unit, d = chain.unit, chain.steps
    if not backward:
        constant = Rounded.exact(np.asarray((1 + _LOG_2_PI) / 2), unit)
        terms = constant + chain.log_s - _padded(chain.minus_log_c, 0, d)
        terms = terms.apply(lambda values: np.broadcast_to(values, chain.row))
        terms = terms + Rounded.exact(np.broadcast_to(chain.marks, chain.row), unit)
        return {"entropy": terms.sum((len(chain.lead),)).apply(lambda values: values[..., 0])}
    assert p.dlog_prob is not None
    h = Rounded.exact(_gradient(p.dlog_prob, chain.lead, True, "dentropy")[..., None], unit)
    by_s = (h / chain.s).apply(lambda values: np.broadcast_to(values, chain.row))
    by_rho = -(h * _as_a_difference(chain.rho) / (chain.c * chain.c))
    by_rho = by_rho.apply(lambda values: np.broadcast_to(values, (*chain.lead, d - 1)))
    return {"dscale": chain.give(by_s, p.scale, d), "drho": chain.give(by_rho, p.rho, d - 1)}


def expected(p: Problem, kind: str, backward: bool) -> dict[str, Rounded]:
    with np.errstate(all="ignore"):
        kinds: dict[str, Any] = {"sample": sampled, "density": density, "entropy": entropy}
        answer: dict[str, Rounded] = kinds[kind](p, backward)
        return answer
