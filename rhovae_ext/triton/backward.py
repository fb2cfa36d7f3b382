"""The gradients of the sample and of its KL; noise is drawn again, never stored.

With g = dL/dz, h = dL/dKL, rho = tanh(a) and v_k = c_k (c_k x_{k-1} - rho_k eps_k), v_1 = 0:

    dL/dmu_k = g_k + h mu_k,   dL/dlog s_k = g_k s_k x_k + h (s_k^2 - 1),   dL/deps_k = c_k lambda_k,
    dL/da_k = lambda_k v_k + h rho_k,   lambda_k = g_k s_k + rho_{k+1} lambda_{k+1}

For one rho a row in one tile the tangent t_k = dx_k/da = rho t_{k-1} + v_k runs forward beside x in place of lambda:
dL/da = sum_k g_k s_k t_k + h (d - 1) rho.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .chain import at_column, carry_into, correlation_of, previous, scale_of, scan
from .forward import chain, noise
from .launch import INTEGERS
from .tiles import load, place, row_starts, store


@triton.jit
def rho_of_next(
    rho: Any,
    rho_start: Any,
    step: Any,
    steps: Any,
    valid: Any,
    own: Any,
    LOGITS: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> Any:
    """rho_{k+1}: what lambda_{k+1} reaches lambda_k with; after the last step nothing does."""
    if RHO_STEP:
        given = load(rho, rho_start, step, steps - 1, valid, 0.0, True, DOUBLE)
        following, _, _ = correlation_of(given, LOGITS)
    else:
        following = own
    return tl.where(step + 1 < steps, following, 0.0)


@triton.jit(do_not_specialize=INTEGERS)
def backward(
    dz: Any,
    dz_sample: tl.int64,
    dz_outer: tl.int64,
    dz_inner: tl.int64,
    dkl: Any,
    dkl_outer: tl.int64,
    dkl_inner: tl.int64,
    mu: Any,
    mu_outer: tl.int64,
    mu_inner: tl.int64,
    scale: Any,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho: Any,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    eps: Any,
    eps_sample: tl.int64,
    eps_outer: tl.int64,
    eps_inner: tl.int64,
    key: Any,
    row_offset: tl.int64,
    weights: Any,
    values: Any,
    adjoint_weights: Any,
    adjoint_values: Any,
    dmu: Any,
    dscale: Any,
    drho: Any,
    deps: Any,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    chunks: tl.int32,
    LOGITS: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DKL_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    FOLD: tl.constexpr,
) -> None:
    """dmu (rows, steps); dscale and drho per step, (rows, steps) and (rows, steps - 1), or (rows, chunks).

    deps (samples, rows, steps) unless None. A dz or dkl of None is zero. The weights and values are None, or the maps of
    the chunks of x and of lambda, (samples, rows, chunks).
    """
    row, step, _, chunk = place(1, chunks, ROWS, STEPS)
    valid = row < rows
    steps = steps // ALIGN * ALIGN
    scale_align: tl.constexpr = ALIGN if SCALE_STEP else 1
    scale_start = row_starts(row, inner, scale_outer, scale_inner, 0, AXES, scale_align)
    s, _ = scale_of(load(scale, scale_start, step, steps, valid, 1.0, SCALE_STEP, DOUBLE), LOGITS)
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    r, c, _ = correlation_of(load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE), LOGITS)

    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    by_mu = tl.zeros((ROWS, STEPS), real)
    by_scale = tl.zeros((ROWS, STEPS), real)
    by_logit = tl.zeros((ROWS, STEPS), real)
    if dz is not None:
        by_adjoint: tl.constexpr = RHO_STEP or deps is not None or weights is not None
        for sample in range(samples):
            line = (sample * rows + row) * chunks
            dz_start = row_starts(row, inner, dz_outer, dz_inner, sample * dz_sample, AXES, ALIGN)
            g = load(dz, dz_start, step, steps, valid, 0.0, True, DOUBLE)
            eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
            e = noise(eps, eps_start, key, row_offset, row, step, sample, chunk, steps, samples, valid, STEPS, DOUBLE)
            weight, x = chain(r, c, e, step)
            before = tl.zeros((1, 1), real)
            if weights is not None:
                before = carry_into(weights + line, values + line, chunk, chunks, False, FOLD)
                x += weight * before
            source = tl.where(step == 0, 0.0, c * (c * previous(x, before) - r * e))
            by_mu += g
            by_scale += g * x
            if by_adjoint:
                following = rho_of_next(rho, rho_start, step, steps, valid, r, LOGITS, RHO_STEP, DOUBLE)
                weight, adjoint = scan(following, g * s, True)
                if weights is not None:
                    after = carry_into(adjoint_weights + line, adjoint_values + line, chunk, chunks, True, FOLD)
                    adjoint += weight * after
                by_logit += adjoint * source
                if deps is not None:
                    start = tl.multiple_of((sample * rows + row) * steps, (ALIGN, ALIGN))
                    store(deps, start, step, steps, valid, tl.where(step == 0, 1.0, c) * adjoint)
            else:
                _, tangent = scan(tl.where(step == 0, 0.0, r), source, False)
                by_logit += g * s * tangent
        if LOGITS:
            by_scale *= s

    if dkl is not None:
        dkl_align: tl.constexpr = ALIGN if DKL_STEP else 1
        dkl_start = row_starts(row, inner, dkl_outer, dkl_inner, 0, AXES, dkl_align)
        h = load(dkl, dkl_start, step, steps, valid, 0.0, DKL_STEP, DOUBLE)
        mu_start = row_starts(row, inner, mu_outer, mu_inner, 0, AXES, ALIGN)
        by_mu += h * load(mu, mu_start, step, steps, valid, 0.0, True, DOUBLE)
        by_scale += h * ((s - 1.0) * (s + 1.0) if LOGITS else s - 1.0 / s)
        by_logit += tl.where(step == 0, 0.0, h * r)

    start = row * steps
    store(dmu, tl.multiple_of(start, (ALIGN, ALIGN)), step, steps, valid, by_mu)
    if SCALE_STEP:
        store(dscale, tl.multiple_of(start, (ALIGN, ALIGN)), step, steps, valid, by_scale)
    else:
        total = tl.sum(tl.where(step < steps, by_scale, 0.0), 1, keep_dims=True)
        tl.store(dscale + row * chunks + chunk, total.to(dscale.dtype.element_ty), mask=valid)
    if drho is not None:
        inverse = 1.0 if LOGITS else 1.0 / (c * c)  # da/drho
        if RHO_STEP:
            store(drho, start - row, step - 1, steps - 1, valid, by_logit * inverse)
        else:
            total = tl.sum(tl.where(step < steps, by_logit, 0.0), 1, keep_dims=True) * inverse
            tl.store(drho + row * chunks + chunk, total.to(drho.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def adjoint_totals(
    dz: Any,
    dz_sample: tl.int64,
    dz_outer: tl.int64,
    dz_inner: tl.int64,
    scale: Any,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho: Any,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    adjoint_weights: Any,
    adjoint_values: Any,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    chunks: tl.int32,
    LOGITS: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """The map of lambda through every chunk of a long row, from its end to its start: (samples, rows, chunks)."""
    row, step, sample, chunk = place(samples, chunks, ROWS, STEPS)
    valid = row < rows
    steps = steps // ALIGN * ALIGN
    scale_align: tl.constexpr = ALIGN if SCALE_STEP else 1
    scale_start = row_starts(row, inner, scale_outer, scale_inner, 0, AXES, scale_align)
    s, _ = scale_of(load(scale, scale_start, step, steps, valid, 1.0, SCALE_STEP, DOUBLE), LOGITS)
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    r, _, _ = correlation_of(load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE), LOGITS)
    dz_start = row_starts(row, inner, dz_outer, dz_inner, sample * dz_sample, AXES, ALIGN)
    g = load(dz, dz_start, step, steps, valid, 0.0, True, DOUBLE)
    following = rho_of_next(rho, rho_start, step, steps, valid, r, LOGITS, RHO_STEP, DOUBLE)
    weight, adjoint = scan(following, g * s, True)
    place_of_chunk = (sample * rows + row) * chunks + chunk
    tl.store(adjoint_weights + place_of_chunk, at_column(weight, 0), mask=valid)
    tl.store(adjoint_values + place_of_chunk, at_column(adjoint, 0), mask=valid)
