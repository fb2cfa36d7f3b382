"""The Gaussian Markov chain over tiles (rows, steps): parameters, scans, and what goes from tile to tile.

    z_k = mu_k + s_k x_k,   x_1 = eps_1,   x_k = rho_k x_{k-1} + c_k eps_k,   c_k = sqrt(1 - rho_k^2)

(rho-VAE, arXiv 1909.06236). A parameter with one value for a row is of shape (rows, 1) throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import launch

NVIDIA = tl.constexpr(launch.NVIDIA)


@triton.jit
def fast(x, FUNCTION: tl.constexpr):
    """NVIDIA's own lg2, sin or cos in float32: one instruction, to 2^-20 absolute."""
    return tl.inline_asm_elementwise(FUNCTION + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def log(x):
    """The natural logarithm, in float32 to 2^-22 (absolute next to 1) where that takes one instruction."""
    if NVIDIA and x.dtype == tl.float32:
        return 0.693147180559945309 * fast(x, "lg2")
    else:
        return tl.log(x)


@triton.jit
def scale_of(given, LOGITS: tl.constexpr):
    """(s, log s) from what the caller gives: log s with logits, else s."""
    if LOGITS:
        return tl.exp(given), given
    else:
        return given, log(given)


@triton.jit
def correlation_of(given, LOGITS: tl.constexpr):
    """(rho, c, -log c) from the logit or from rho itself; |rho| >= 1 is no correlation and becomes NaN.

    From t = exp(-|a|): tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2) and
    log cosh a = |a| + log(1 + t^2) - log 2. None of them overflows. Far past the last digit of 1 - rho, t is
    held: c stays a number that the density can divide by.
    """
    if LOGITS:
        largest: tl.constexpr = 700.0 if given.dtype == tl.float64 else 80.0
        size = tl.abs(given)
        t = tl.exp(-tl.where(size > largest, largest, size))
        square = t * t
        inverse = 1.0 / (1.0 + square)
        rho = (1.0 - square) * inverse
        minus_log_c = size + log(1.0 + square) - 0.693147180559945309417232121458
        return tl.where(given < 0, -rho, rho), 2.0 * t * inverse, minus_log_c
    else:
        square = (1.0 - given) * (1.0 + given)
        square = tl.where(square > 0, square, float("nan"))
        return given, tl.sqrt(square), -0.5 * log(square)


@triton.jit
def _after(weight1, value1, weight2, value2):
    """One stretch of steps after another, each the map x -> weight x + value."""
    return weight1 * weight2, weight2 * value1 + value2


@triton.jit
def _after_with_previous(weight1, value1, before_last1, last1, weight2, value2, before_last2, last2):
    """The same, and the map to the step before the last one of the stretch."""
    return weight1 * weight2, weight2 * value1 + value2, weight1 * before_last2, before_last2 * value1 + last2


@triton.jit
def _after_with_tangent(weight1, slope1, value1, tangent1, weight2, slope2, value2, tangent2):
    """The same, and its derivative: slope that of the weight, tangent that of the value."""
    slope = weight2 * slope1 + slope2 * weight1
    return (
        weight1 * weight2,
        slope,
        weight2 * value1 + value2,
        weight2 * tangent1 + slope2 * value1 + tangent2,
    )


@triton.jit
def scan(weight, value, REVERSE: tl.constexpr):
    """(W, x) of x_k = weight_k x_{k-1} + value_k from x_0 = 0; another x_0 adds W_k x_0."""
    weight = tl.broadcast_to(weight, value.shape)
    return tl.associative_scan((weight, value), 1, _after, reverse=REVERSE)


@triton.jit
def scan_with_previous(weight, value):
    """(W, x, V, y): the scan, and y_k + V_k x_0 = x_{k-1}."""
    weight = tl.broadcast_to(weight, value.shape)
    maps = (weight, value, tl.full(value.shape, 1.0, value.dtype), tl.zeros(value.shape, value.dtype))
    return tl.associative_scan(maps, 1, _after_with_previous)


@triton.jit
def scan_with_tangent(weight, slope, value, tangent):
    """(x, dx/da) where slope and tangent are the derivatives of weight and value by a."""
    maps = (tl.broadcast_to(weight, value.shape), tl.broadcast_to(slope, value.shape), value, tangent)
    _, _, x, t = tl.associative_scan(maps, 1, _after_with_tangent)
    return x, t


@triton.jit
def at_column(x, column: tl.constexpr):
    """One column of a tile, (rows, 1)."""
    return tl.sum(tl.where(tl.arange(0, x.shape[1])[None, :] == column, x, 0.0), 1, keep_dims=True)


@triton.jit
def carry_into(weights, values, chunk, chunks, REVERSE: tl.constexpr, FOLD: tl.constexpr):
    """What reaches `chunk` of a row from the chunks before it (after it, in reverse): (1, 1).

    weights, values: (chunks,), the map of every chunk. The row starts (ends) at 0.
    """
    carry = tl.zeros((1, 1), values.dtype.element_ty)
    count = chunks - 1 - chunk if REVERSE else chunk
    for first in range(0, count, FOLD):
        place = first + tl.arange(0, FOLD)[None, :]
        index = chunks - 1 - place if REVERSE else place
        weight = tl.load(weights + index, mask=place < count, other=1.0)
        value = tl.load(values + index, mask=place < count, other=0.0)
        weight, value = scan(weight, value, False)
        carry = at_column(weight, FOLD - 1) * carry + at_column(value, FOLD - 1)
    return carry
