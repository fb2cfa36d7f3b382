"""The gradients of the sample and of its KL; noise is drawn again, never stored.

With g = dL/dz, h = dL/dKL, rho = tanh(a) and v_k = c_k (c_k x_{k-1} - rho_k eps_k), v_1 = 0:

    dL/dmu_k = g_k + h mu_k,   dL/dlog s_k = g_k s_k x_k + h (s_k^2 - 1),   dL/deps_k = c_k lambda_k,
    dL/da_k = lambda_k v_k + h rho_k,   lambda_k = g_k s_k + rho_{k+1} lambda_{k+1}

For one rho a row in one tile the tangent t_k = dx_k/da = rho t_{k-1} + v_k runs forward beside x in place of
lambda: dL/da = sum_k g_k s_k t_k + h (d - 1) rho.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import (
    at_column,
    carry_into,
    correlation_of,
    held,
    product,
    scale_of,
    scan,
    scan_with_previous,
    scan_with_tangent,
)
from .forward import innovation, noise
from .launch import INTEGERS
from .tiles import along, load, place, row_starts, row_sum, store


@triton.jit
def rho_of_next(
    rho,
    rho_start,
    step,
    steps,
    valid,
    own,
    own_c,
    LOGITS: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """rho_{k+1}, what lambda_{k+1} reaches lambda_k with, and c_{k+1}; (0, 1) after the last step."""
    if RHO_STEP:
        given = load(rho, rho_start, step, steps - 1, valid, 0.0, True, DOUBLE)
        following, c, _ = correlation_of(given, LOGITS)
    else:
        following, c = own, own_c
    return tl.where(step + 1 < steps, following, 0.0), tl.where(step + 1 < steps, c, 1.0)


@triton.jit(do_not_specialize=INTEGERS)
def backward(
    dz,
    dz_sample: tl.int64,
    dz_outer: tl.int64,
    dz_inner: tl.int64,
    dkl,
    dkl_outer: tl.int64,
    dkl_inner: tl.int64,
    mu,
    mu_outer: tl.int64,
    mu_inner: tl.int64,
    scale,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    eps,
    eps_sample: tl.int64,
    eps_outer: tl.int64,
    eps_inner: tl.int64,
    key,
    row_offset: tl.int64,
    weights,
    values,
    adjoint_weights,
    adjoint_values,
    dmu,
    dscale,
    drho,
    deps,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    chunks: tl.int32,
    CHUNKED: tl.constexpr,
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
):
    """dmu (rows, steps); dscale and drho per step, (rows, steps) and (rows, steps - 1), or (rows, chunks).

    deps (samples, rows, steps) unless None. A dz or dkl of None is zero. weights and values: where rows are
    CHUNKED, the maps of the chunks of x and of lambda, (samples, rows, chunks). Programs: tiles.
    """
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    given = along(
        scale, scale_outer, scale_inner, row, inner, step, steps, valid, 1.0, SCALE_STEP, AXES, ALIGN, DOUBLE
    )
    s, _, _ = scale_of(given, LOGITS)
    s = held(s) if LOGITS else s
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    given = load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE)
    r, c, _ = correlation_of(given, LOGITS)

    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    by_mu = tl.zeros((ROWS, STEPS), real)
    by_scale = tl.zeros((ROWS, STEPS), real)
    by_logit = tl.zeros((ROWS, STEPS), real)
    if dz is not None:
        by_adjoint: tl.constexpr = RHO_STEP or CHUNKED or deps is not None
        for sample in range(samples):
            dz_start = row_starts(row, inner, dz_outer, dz_inner, sample * dz_sample, AXES, ALIGN)
            g = load(dz, dz_start, step, steps, valid, 0.0, True, DOUBLE)
            eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
            e = noise(
                eps,
                eps_start,
                key,
                row_offset,
                row,
                step,
                sample,
                chunk,
                steps,
                samples,
                valid,
                STEPS,
                DOUBLE,
            )
            source = innovation(c, e, step)
            if by_adjoint:
                weight, x, weight_before, before = scan_with_previous(r, source)
                following, _following_c = rho_of_next(
                    rho, rho_start, step, steps, valid, r, c, LOGITS, RHO_STEP, DOUBLE
                )
                reach, adjoint = scan(following, g * s, True)
                line = (sample * rows + row) * chunks
                if CHUNKED:
                    carry = carry_into(weights + line, values + line, chunk, chunks, False, FOLD)
                    x += weight * carry
                    before += weight_before * carry
                    carry = carry_into(
                        adjoint_weights + line, adjoint_values + line, chunk, chunks, True, FOLD
                    )
                    adjoint += reach * carry
                by_logit += tl.where(step == 0, 0.0, adjoint * c * (c * before - r * e))
                if deps is not None:
                    start = (sample * rows + row) * steps
                    store(deps, start, step, steps, valid, innovation(c, adjoint, step))
            else:
                x, tangent = scan_with_tangent(r, c * c, source, tl.where(step == 0, 0.0, -c * r * e))
                by_logit += g * s * tangent
            by_mu += g
            by_scale += g * x
        if LOGITS:
            by_scale *= s

    kl_by_scale = tl.zeros((ROWS, 1), real)
    kl_by_logit = tl.zeros((ROWS, 1), real)
    if dkl is not None:
        h = along(
            dkl, dkl_outer, dkl_inner, row, inner, step, steps, valid, 0.0, DKL_STEP, AXES, ALIGN, DOUBLE
        )
        mean = along(mu, mu_outer, mu_inner, row, inner, step, steps, valid, 0.0, True, AXES, ALIGN, DOUBLE)
        by_mu += h * mean
        kl_by_scale = (h * (s - 1.0)) * (s + 1.0) if LOGITS else h * (s - 1.0 / s)
        kl_by_logit = h * r

    start = row * steps
    store(dmu, start, step, steps, valid, by_mu)
    if SCALE_STEP:
        store(dscale, start, step, steps, valid, by_scale + kl_by_scale)
    else:
        total = tl.sum(by_scale, 1, keep_dims=True) + row_sum(kl_by_scale, step, chunk, 0, steps, STEPS)
        tl.store(dscale + row * chunks + chunk, total.to(dscale.dtype.element_ty), mask=valid)
    if drho is not None:
        by_value = 1.0 if LOGITS else 1.0 / (c * c)  # da/drho
        if RHO_STEP:
            store(drho, start - row, step - 1, steps - 1, valid, (by_logit + kl_by_logit) * by_value)
        else:
            total = tl.sum(by_logit, 1, keep_dims=True) + row_sum(kl_by_logit, step, chunk, 1, steps, STEPS)
            tl.store(drho + row * chunks + chunk, (total * by_value).to(drho.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def adjoint_totals(
    dz,
    dz_sample: tl.int64,
    dz_outer: tl.int64,
    dz_inner: tl.int64,
    scale,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    adjoint_weights,
    adjoint_values,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    first_sample: tl.int32,
    chunks: tl.int32,
    CHUNKED: tl.constexpr,
    LOGITS: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The map of lambda from the end of every chunk to its start: (samples, rows, chunks)."""
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    given = along(
        scale, scale_outer, scale_inner, row, inner, step, steps, valid, 1.0, SCALE_STEP, AXES, ALIGN, DOUBLE
    )
    s, _, _ = scale_of(given, LOGITS)
    s = held(s) if LOGITS else s
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    given = load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE)
    r, c, _ = correlation_of(given, LOGITS)
    following, c = rho_of_next(rho, rho_start, step, steps, valid, r, c, LOGITS, RHO_STEP, DOUBLE)
    sample = first_sample + tl.program_id(1)
    dz_start = row_starts(row, inner, dz_outer, dz_inner, sample * dz_sample, AXES, ALIGN)
    g = load(dz, dz_start, step, steps, valid, 0.0, True, DOUBLE)
    weight, adjoint = scan(following, g * s, True)
    map_of_chunk = (sample * rows + row) * chunks + chunk
    total = at_column(weight, 0) if DOUBLE else product(following, c, STEPS)
    tl.store(adjoint_weights + map_of_chunk, total, mask=valid)
    tl.store(adjoint_values + map_of_chunk, at_column(adjoint, 0), mask=valid)
