"""The terms of the KL divergence between two chains, with gradients in closed form.

With ``u_k = (mu_k - m_k) / p_k``, ``w_k = s_k / p_k`` and correlations ``rho = tanh(a)``, ``r = tanh(b)``,

    KL_1 = f(log w_1) + 1/2 u_1^2       KL_k = f(x_k) + 1/2 C_k^2 + 1/2 D_k^2       f(x) = 1/2 (e^2x - 1) - x
    x_k = log w_k + log cosh b_k - log cosh a_k
    C_k = (rho_k w_k - r_k w_{k-1}) cosh b_k        D_k = (u_k - r_k u_{k-1}) cosh b_k

none of which is negative. Autograd of such formulas multiplies ``cosh b`` by what has cancelled. Here each
derivative is an expression of its own, and a term that nothing asks for (an upstream gradient of 0, as of the
steps beyond the end of a padded row) adds exactly 0 to every gradient, whatever its parameters hold.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from rhovae_ext.correlation import sign
from rhovae_ext.shapes import widest_dtype


def terms(
    mu: Tensor, log_s: Tensor, a: Tensor, m: Tensor, log_p: Tensor, b: Tensor, dtype: torch.dtype
) -> Tensor:
    """KL_k of the chain (mu, log_s, a) to (m, log_p, b), ``(..., d)``, in dtype.

    Shape: mu and m ``(..., d)``; log_s, log_p ``(..., 1)`` or ``(..., d)``; a, b ``(..., 1)`` or
    ``(..., d-1)`` (``(..., 0)`` where d = 1). Leading axes broadcast.
    """
    # a forward mode of one's own gives zeros in silence where two are nested, and torch.compile takes none
    if forward_ad._current_level >= 0:
        return _values(mu, log_s, a, m, log_p, b, dtype)
    result: Tensor = _Terms.apply(mu, log_s, a, m, log_p, b, dtype)  # type: ignore[no-untyped-call]
    return result


def _values(
    mu: Tensor, log_s: Tensor, a: Tensor, m: Tensor, log_p: Tensor, b: Tensor, dtype: torch.dtype
) -> Tensor:
    steps, ties = _parts(dtype, *_operands(mu, log_s, a, m, log_p, b))
    first = divergence(steps.log_w[..., :1]) + 0.5 * steps.u[..., :1].square()
    later = divergence(ties.x) + 0.5 * (ties.carried.square() + ties.drift.square())
    kl = _joined(first, later)
    # to() as it is: the compiler of torch 2.11 gives such an output of an autograd.Function no gradient
    return kl if kl.dtype == dtype else kl.to(dtype)


class _Terms(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _values(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6], output)
        ctx.dtype = inputs[6]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        *inputs, kl = ctx.saved_tensors
        (g,) = upstream
        # not asked for and not finite: with 0 for its parameters, 0 times its derivatives is 0
        idle = (g == 0) & (kl - kl != 0)
        steps, ties = _parts(ctx.dtype, *_without(idle, *_operands(*inputs)))
        by = _derivatives(steps, ties, ctx.dtype)
        g = g.to(steps.u.dtype)
        first, later = g[..., :1], g[..., 1:]
        by_u = _joined(first * by.first_u, later * by.u) + pad(later * by.u_before, (0, 1))
        by_log_w = _joined(first * by.first_log_w, later * by.log_w) + pad(later * by.log_w_before, (0, 1))
        by_mean = by_u * steps.inverse_p
        gradients = (
            by_mean, by_log_w, later * by.a, -by_mean, -(by_log_w + by_u * steps.u), later * by.b
        )  # fmt: skip
        return *(v.sum_to_size(x.shape).to(x.dtype) for v, x in zip(gradients, inputs, strict=True)), None


# Steps and the ties between them


def _operands(
    mu: Tensor, log_s: Tensor, a: Tensor, m: Tensor, log_p: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    """mu - m, log_s, log_p, a and b in the type of the arithmetic; one value for a row stays one value."""
    dtype = widest_dtype(mu)
    return (mu.to(dtype) - m.to(dtype), *(x.to(dtype) for x in (log_s, log_p, a, b)))


def _pairs(*values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each at the steps 2..d and at those before; the last of the values has d of them."""
    d = values[-1].shape[-1]
    return [(x[..., 1:], x[..., :-1]) if x.shape[-1] == d else (x, x) for x in values]


def _joined(first: Tensor, later: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(first.shape[:-1], later.shape[:-1])
    return torch.cat((first.expand(*lead, -1), later.expand(*lead, -1)), -1)


def _without(idle: Tensor, shift: Tensor, log_s: Tensor, log_p: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """The operands with 0 for what idle terms alone depend on."""
    ties = idle[..., 1:]
    steps = idle & pad(ties, (0, 1), value=True)

    def emptied(x: Tensor, where: Tensor) -> Tensor:
        if x.shape != where.shape:
            where = (~where).to(x.dtype).sum_to_size(x.shape) == 0
        return torch.where(where, 0.0, x)

    return [*(emptied(x, steps) for x in (shift, log_s, log_p)), *(emptied(x, ties) for x in (a, b))]


# The terms and their derivatives


class _Limits(NamedTuple):
    """What exponentials and products are held to, so that nothing is infinity times 0 or less infinity."""

    exponent: float
    logit: float
    root: float = math.inf
    number: float = math.inf

    @classmethod
    def of(cls, dtype: torch.dtype, wide: torch.dtype) -> _Limits:
        if dtype != wide:  # far beyond dtype's range, and every product is still within the wide one's
            return cls(100.0, 150.0)
        largest = torch.finfo(wide).max
        log = math.log(largest) - 2.0
        return cls(log, log, math.sqrt(largest) / 2.0**12, largest / 2.0**24)

    def hold(self, x: Tensor) -> Tensor:
        return x if self.number == math.inf else x.clamp(-self.number, self.number)

    def hold_root(self, x: Tensor) -> Tensor:
        return x if self.root == math.inf else x.clamp(-self.root, self.root)


class _Steps(NamedTuple):
    u: Tensor
    log_w: Tensor
    w: Tensor
    inverse_p: Tensor  # 1 / p


class _Ties(NamedTuple):
    sign_a: Tensor
    sign_b: Tensor
    qa: Tensor  # exp(-2|a|)
    qb: Tensor
    cosh: Tensor  # of b
    gain: Tensor  # log cosh b - log cosh a
    apart: Tensor  # |rho| - |r|
    x: Tensor
    carried: Tensor  # C
    drift: Tensor  # D


def _parts(
    dtype: torch.dtype, shift: Tensor, log_s: Tensor, log_p: Tensor, a: Tensor, b: Tensor
) -> tuple[_Steps, _Ties]:
    limits = _Limits.of(dtype, shift.dtype)
    log_w = log_s - log_p
    w = torch.exp(log_w.clamp(max=limits.exponent))
    inverse_p = torch.exp(-log_p.clamp(min=-limits.exponent))
    u = limits.hold(shift * inverse_p)
    (log_w_now, _), (w_now, w_before), (u_now, u_before) = _pairs(log_w, w, u)

    # |a| and |b| through exponentials that vanish: 1 - |tanh| keeps its digits
    sign_a, sign_b = sign(a), sign(b)
    size_a, size_b = sign_a * a, sign_b * b
    qa, shrink = torch.exp(-2.0 * size_a), torch.exp(-size_b.clamp(max=limits.logit))
    qb = shrink * shrink
    cosh = 0.5 * (1.0 / shrink + shrink)

    # differences of log cosh and of tanh from |b| - |a| itself, which is exact where the two are close
    difference = size_b - size_a
    wider = sign(difference)
    difference = wider * difference
    small, large = torch.maximum(qa, qb), torch.minimum(qa, qb)  # of the smaller logit and of the larger
    fall = small * torch.expm1(-2.0 * difference) / (1.0 + large)
    gain = wider * (difference - torch.log1p(-fall))
    apart = 2.0 * wider * fall / (1.0 + small)

    # cosh b times (now - r before): before is aligned with now, and cosh b (1 - |r|) = exp(-|b|)
    signed, aligned = sign_a * w_now, sign_b * w_before
    carried = (signed - aligned - signed * (2.0 * qa / (1.0 + qa))) * cosh + aligned * shrink
    aligned = sign_b * u_before
    drift = (u_now - aligned) * cosh + aligned * shrink
    x = (log_w_now + gain).clamp(max=2.0 * limits.exponent)
    return _Steps(u, log_w, w, inverse_p), _Ties(sign_a, sign_b, qa, qb, cosh, gain, apart, x, carried, drift)


def divergence(x: Tensor) -> Tensor:
    """``1/2 (e^2x - 1) - x``: near 0, where the two cancel, its series."""
    series = x * x * (1.0 + x * (2 / 3 + x * (1 / 3)))
    return torch.where(x.abs() < torch.finfo(x.dtype).eps ** 0.25, series, 0.5 * torch.expm1(2.0 * x) - x)


class _Derivatives(NamedTuple):
    """Of KL_1 by log_w_1 and u_1, and of KL_k by its own, those before and the logits."""

    first_log_w: Tensor
    first_u: Tensor
    log_w: Tensor
    log_w_before: Tensor
    u: Tensor
    u_before: Tensor
    a: Tensor
    b: Tensor


def _derivatives(steps: _Steps, ties: _Ties, dtype: torch.dtype) -> _Derivatives:
    limits = _Limits.of(dtype, steps.u.dtype)
    hold, exponent = limits.hold, limits.exponent
    (log_w, log_w_before), (w, w_before), (_, u_before) = _pairs(steps.log_w, steps.w, steps.u)
    cosh, carried, drift = ties.cosh, limits.hold_root(ties.carried), limits.hold_root(ties.drift)
    # not through expm1, whose own derivative loses its digits as q vanishes
    rho, r = ties.sign_a * (1.0 - ties.qa) / (1.0 + ties.qa), ties.sign_b * (1.0 - ties.qb) / (1.0 + ties.qb)
    same = 0.5 * (ties.sign_a + ties.sign_b)
    apart = same * ties.apart + (1.0 - same * same) * (rho - r)
    excess = hold(torch.expm1(2.0 * ties.x))
    # of KL_k by a: rho - r w_k w_{k-1} cosh(b)^2 / cosh(a)^2
    more = torch.expm1((log_w + log_w_before + 2.0 * ties.gain).clamp(max=2.0 * exponent))
    sinh = r * cosh
    return _Derivatives(
        hold(torch.expm1(2.0 * steps.log_w[..., :1].clamp(max=2.0 * exponent))),
        steps.u[..., :1],
        hold(excess + carried * (rho * hold(w * cosh))),
        -hold(carried * (r * hold(w_before * cosh))),
        hold(drift * cosh),
        -hold(drift * sinh),
        apart - r * hold(more),
        hold(
            excess * r
            + carried * (r * carried - limits.hold_root(w_before / cosh))
            + drift * (r * drift - limits.hold_root(u_before / cosh))
        ),
    )
