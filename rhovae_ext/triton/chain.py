"""The Gaussian Markov chain over tiles (rows, steps): parameters, scans, and what goes from tile to tile.

    z_k = mu_k + s_k x_k,   x_1 = eps_1,   x_k = rho_k x_{k-1} + c_k eps_k,   c_k = sqrt(1 - rho_k^2)

(rho-VAE, arXiv 1909.06236). A parameter with one value for a row is of shape (rows, 1) throughout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch

NVIDIA = tl.constexpr(launch.NVIDIA)
LARGEST_FLOAT = tl.constexpr(launch.LARGEST_TERM[torch.float32])
LARGEST_DOUBLE = tl.constexpr(launch.LARGEST_TERM[torch.float64])


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
def exp_of(x):
    """(e^x, e^x - 1, e^x - 1 - x), each to its own last digit: near 0 by the series of the last."""
    terms: tl.constexpr = 18 if x.dtype == tl.float64 else 9
    value = tl.exp(x)
    series = x * 0.0 + 1.0
    for i in tl.static_range(terms - 2):
        series = 1.0 + series * x * (1.0 / (terms - i))
    excess = 0.5 * x * x * series
    near = tl.abs(x) < 0.7
    less_one = tl.where(near, x + excess, value - 1.0)
    return value, less_one, tl.where(near, excess, less_one - x)


@triton.jit
def log_of(v, less_one):
    """(log v, v - 1 - log v), each to its own last digit, from v and v - 1.

    Near 1 by log(1 + m) = 2 artanh(t) = 2t + t^3 (2/3 + 2/5 t^2 + ...), t = m/(2 + m).
    """
    terms: tl.constexpr = 14 if v.dtype == tl.float64 else 5
    t = less_one / (2.0 + less_one)
    square = t * t
    series = t * 0.0
    for i in tl.static_range(terms):
        series = series * square + 2.0 / (2 * (terms - i) + 1)
    beyond_linear = t * square * series
    near = tl.abs(less_one) < 0.375
    value = tl.where(near, 2.0 * t + beyond_linear, log(v))
    return value, tl.where(near, less_one * t - beyond_linear, less_one - value)


@triton.jit
def held(x):
    """Terms that are added up with either sign: infinite ones would cancel to NaN."""
    if x.dtype == tl.float64:  # where no instruction clamps
        return tl.where(x > LARGEST_DOUBLE, LARGEST_DOUBLE, tl.where(x < -LARGEST_DOUBLE, -LARGEST_DOUBLE, x))
    else:
        return tl.clamp(x, -LARGEST_FLOAT, LARGEST_FLOAT, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def scale_of(given, LOGITS: tl.constexpr):
    """(s, log s, s's term of the KL: 1/2 (s^2 - 1) - log s) from log s with logits, else from s."""
    if LOGITS:
        s, less_one, excess = exp_of(given)
        return s, given, 0.5 * less_one * less_one + excess
    else:
        less_one = given - 1.0
        log_s, excess = log_of(given, less_one)
        return given, log_s, 0.5 * less_one * less_one + excess


@triton.jit
def log_cosh(a, size, t2):
    """log cosh a by the polynomials of csrc/core/parameters.h: in a^2 for |a| < 1, beyond in exp(-2|a|)."""
    square = a * a
    if a.dtype == tl.float64:
        near = -2.2764198082727952e-09 * square + 2.4268051367700383e-08
        near = near * square - 1.3068157325434964e-07
        near = near * square + 4.924539882543482e-07
        near = near * square - 1.5281848212875655e-06
        near = near * square + 4.331402571628952e-06
        near = near * square - 1.1918687623522829e-05
        near = near * square + 3.276489941653655e-05
        near = near * square - 9.09856096555369e-05
        near = near * square + 0.00025657975920948954
        near = near * square - 0.0007386028466072547
        near = near * square + 0.002186948843058455
        near = near * square - 0.006746031745439467
        near = near * square + 0.022222222222204716
        near = near * square - 0.08333333333333313
        far = 0.047411558351055566 * t2 - 0.08772810334307986
        far = far * t2 + 0.10902255928228051
        far = far * t2 - 0.12477323238003318
        far = far * t2 + 0.1428411083012755
        far = far * t2 - 0.1666659327590879
        far = far * t2 + 0.19999997895273075
        far = far * t2 - 0.24999999964663686
        far = far * t2 + 0.33333333333028264
        far = far * t2 - 0.49999999999998973
    else:
        near = 8.6054104e-05 * square - 0.000554665516
        near = near * square + 0.00207557832
        near = near * square - 0.00670951186
        near = near * square + 0.0222163554
        near = near * square - 0.0833329707
        far = 0.152762681 * t2 - 0.244727269
        far = far * t2 + 0.333085179
        far = far * t2 - 0.499995857
    near = square * (near * square + 0.5)
    far = (size - 0.693147180559945309417232121458) + t2 * (far * t2 + 1.0)
    return tl.where(size < 1.0, near, far)


@triton.jit
def correlation_of(given, LOGITS: tl.constexpr):
    """(rho, c, -log c) from the logit or from rho itself; |rho| >= 1 is no correlation and becomes NaN.

    From t = exp(-|a|): tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2). None of them overflows. Far
    past the last digit of 1 - rho, t is held.
    """
    if LOGITS:
        largest: tl.constexpr = 700.0 if given.dtype == tl.float64 else 80.0
        size = tl.abs(given)
        t = tl.exp(-tl.where(size > largest, largest, size))
        square = t * t
        inverse = 1.0 / (1.0 + square)
        rho = (1.0 - square) * inverse
        return tl.where(given < 0, -rho, rho), 2.0 * t * inverse, log_cosh(given, size, square)
    else:
        square = (1.0 - given) * (1.0 + given)
        square = tl.where(square > 0, square, float("nan"))
        log_square, _ = log_of(square, -given * given)
        return given, tl.sqrt(square), -0.5 * log_square


@triton.jit
def product(rho, c, STEPS: tl.constexpr):
    """The product of rho over a tile's steps, (rows, 1), rounded once: by its logarithm.

    The product of the rounded rho would be off by up to 3e-8 a step, and a long row not forget that. c has
    1 - |rho| to its own last digit.
    """
    gap = c * c / (1.0 + tl.abs(rho))
    series = 1 / 2 + gap * (1 / 3 + gap * (1 / 4 + gap * (1 / 5 + gap * (1 / 6))))
    logs = tl.where(gap < 0.1, -gap * (1.0 + gap * series), log(1.0 - gap))
    negative = (rho < 0).to(tl.int32)
    if rho.shape[1] == 1:
        total, odd = logs * STEPS, negative * (STEPS % 2)
    else:
        total, odd = tl.sum(logs, 1, keep_dims=True), tl.sum(negative, 1, keep_dims=True) % 2
    _, less_one, _ = exp_of(total)
    return tl.where(odd == 1, -1.0 - less_one, 1.0 + less_one)


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
