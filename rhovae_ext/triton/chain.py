"""The Gaussian Markov chain over tiles (rows, steps): parameters, the scan, and its carry from one tile to the next.

z_k = mu_k + s_k x_k, x_1 = eps_1, x_k = rho_k x_{k-1} + c_k eps_k, c_k = sqrt(1 - rho_k^2) (rho-VAE, arXiv 1909.06236).
A parameter with one value for a row is of shape (rows, 1) throughout.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def scale_of(given: Any, LOGITS: tl.constexpr) -> Any:
    """(s, log s) from what the caller gives: log s with logits, else s."""
    if LOGITS:
        return tl.exp(given), given
    else:
        return given, tl.log(given)


@triton.jit
def correlation_of(given: Any, LOGITS: tl.constexpr) -> Any:
    """(rho, c, -log c) from the logit or from rho itself; |rho| >= 1 is no correlation and becomes NaN.

    From t = exp(-|a|): tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2), log cosh a = |a| + log(1 + t^2) - log 2.
    None overflows. Far past the last digit of 1 - rho, t is held: c stays a number that the density can divide by.
    """
    if LOGITS:
        largest: tl.constexpr = 700.0 if given.dtype == tl.float64 else 80.0
        size = tl.abs(given)
        t = tl.exp(-tl.where(size > largest, largest, size))
        square = t * t
        inverse = 1.0 / (1.0 + square)
        rho = (1.0 - square) * inverse
        minus_log_c = size + tl.log(1.0 + square) - 0.693147180559945309417232121458
        return tl.where(given < 0, -rho, rho), 2.0 * t * inverse, minus_log_c
    else:
        square = (1.0 - given) * (1.0 + given)
        square = tl.where(square > 0, square, float("nan"))
        return given, tl.sqrt(square), -0.5 * tl.log(square)


@triton.jit
def compose(weight1: Any, value1: Any, weight2: Any, value2: Any) -> Any:
    """One stretch of steps after another, each the map x -> weight x + value."""
    return weight1 * weight2, weight2 * value1 + value2


@triton.jit
def scan(weight: Any, value: Any, REVERSE: tl.constexpr) -> Any:
    """The map from before the tile to after each of its steps; weight may be one for the row."""
    weight = tl.broadcast_to(weight, value.shape)
    return tl.associative_scan((weight, value), 1, compose, reverse=REVERSE)


@triton.jit
def previous(x: Any, before: Any) -> Any:
    """x_{k-1}; `before` stands in front of the tile's first step."""
    column = tl.arange(0, x.shape[1])[None, :]
    shifted = tl.gather(x, tl.broadcast_to(tl.maximum(column - 1, 0), x.shape), 1)
    return tl.where(column == 0, before, shifted)


@triton.jit
def at_column(x: Any, column: tl.constexpr) -> Any:
    """One column of a tile, (rows, 1)."""
    return tl.sum(tl.where(tl.arange(0, x.shape[1])[None, :] == column, x, 0.0), 1, keep_dims=True)


@triton.jit
def carry_into(weights: Any, values: Any, chunk: Any, chunks: Any, REVERSE: tl.constexpr, FOLD: tl.constexpr) -> Any:
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
