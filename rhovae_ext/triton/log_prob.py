"""The log-density by the change of variables from z to eps, and its gradients.

No recurrence: neighbours are read again.

x_k = (z_k - mu_k)/s_k,   eps_k = (x_k - rho_k x_{k-1})/c_k,
log q = -sum_k (1/2 eps_k^2 + 1/2 log 2 pi + log s_k + log c_k)

With b_k = rho_{k+1} eps_{k+1}/c_{k+1} - eps_k/c_k and rho = tanh(a): d/dz_k = b_k/s_k, d/dmu_k = -b_k/s_k,
d/dlog s_k = -b_k x_k - 1, d/da_k = eps_k (c_k x_{k-1} - rho_k eps_k) + rho_k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import correlation_of, held, scale_of
from .launch import INTEGERS
from .tiles import load, place, row_starts, store


@triton.jit
def standardised(
    z,
    z_start,
    mu,
    mu_start,
    scale,
    scale_start,
    step,
    steps,
    valid,
    LOGITS: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """(x, s, log s) at the steps; x is 0 outside the row, s is 1. A log s may run away: s is not zero."""
    centred = load(z, z_start, step, steps, valid, 0.0, True, DOUBLE)
    centred -= load(mu, mu_start, step, steps, valid, 0.0, True, DOUBLE)
    s, log_s, _ = scale_of(load(scale, scale_start, step, steps, valid, 1.0, SCALE_STEP, DOUBLE), LOGITS)
    if LOGITS:
        smallest: tl.constexpr = 2.0**-1022 if DOUBLE else 2.0**-126
        s = tl.where(s < smallest, smallest, s)
    return held(centred / s), s, log_s


@triton.jit
def correlation_at(
    rho,
    rho_start,
    step,
    steps,
    valid,
    LOGITS: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """(rho, c, -log c) that tie the steps to those before them; (0, 1, 0) where there is nothing to tie.

    c is held where the density, which divides by it twice, would
    be infinite at the chain's own points.
    """
    given = load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE)
    r, c, minus_log_c = correlation_of(given, LOGITS)
    smallest: tl.constexpr = 1e-130 if DOUBLE else 8.5e-18
    c = tl.where(c < smallest, smallest, c)
    tied = (step > 0) & (step < steps)
    return tl.where(tied, r, 0.0), tl.where(tied, c, 1.0), tl.where(tied, minus_log_c, 0.0)


@triton.jit
def residual(r, c, before, x):
    """eps = (x_k - rho x_{k-1})/c."""
    return held((x - r * before) / c)


@triton.jit(do_not_specialize=INTEGERS)
def log_prob(
    z,
    z_outer: tl.int64,
    z_inner: tl.int64,
    mu,
    mu_outer: tl.int64,
    mu_inner: tl.int64,
    scale,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    out,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
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
    """out: (rows, chunks), the part of every chunk."""
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    scale_align: tl.constexpr = ALIGN if SCALE_STEP else 1
    z_start = row_starts(row, inner, z_outer, z_inner, 0, AXES, ALIGN)
    mu_start = row_starts(row, inner, mu_outer, mu_inner, 0, AXES, ALIGN)
    scale_start = row_starts(row, inner, scale_outer, scale_inner, 0, AXES, scale_align)
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    x, _, log_s = standardised(
        z, z_start, mu, mu_start, scale, scale_start, step, steps, valid, LOGITS, SCALE_STEP, DOUBLE
    )
    before, _, _ = standardised(
        z, z_start, mu, mu_start, scale, scale_start, step - 1, steps, valid, LOGITS, SCALE_STEP, DOUBLE
    )
    r, c, minus_log_c = correlation_at(rho, rho_start, step, steps, valid, LOGITS, RHO_STEP, DOUBLE)
    e = residual(r, c, before, x)
    density = minus_log_c - log_s - 0.5 * e * e - 0.918938533204672741780329736406
    total = tl.sum(tl.where(step < steps, density, 0.0), 1, keep_dims=True)
    tl.store(out + row * chunks + chunk, total, mask=valid)


@triton.jit(do_not_specialize=INTEGERS)
def log_prob_backward(
    dlog_prob,
    dlog_prob_outer: tl.int64,
    dlog_prob_inner: tl.int64,
    z,
    z_outer: tl.int64,
    z_inner: tl.int64,
    mu,
    mu_outer: tl.int64,
    mu_inner: tl.int64,
    scale,
    scale_outer: tl.int64,
    scale_inner: tl.int64,
    rho,
    rho_outer: tl.int64,
    rho_inner: tl.int64,
    dz,
    dmu,
    dscale,
    drho,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
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
    """dz, dmu (rows, steps); dscale, drho per step, (rows, steps), (rows, steps - 1), or (rows, chunks)."""
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    scale_align: tl.constexpr = ALIGN if SCALE_STEP else 1
    z_start = row_starts(row, inner, z_outer, z_inner, 0, AXES, ALIGN)
    mu_start = row_starts(row, inner, mu_outer, mu_inner, 0, AXES, ALIGN)
    scale_start = row_starts(row, inner, scale_outer, scale_inner, 0, AXES, scale_align)
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    h_start = row_starts(row, inner, dlog_prob_outer, dlog_prob_inner, 0, AXES, 1)
    h = load(dlog_prob, h_start, step, steps, valid, 0.0, False, DOUBLE)
    x, s, _ = standardised(
        z, z_start, mu, mu_start, scale, scale_start, step, steps, valid, LOGITS, SCALE_STEP, DOUBLE
    )
    before, _, _ = standardised(
        z, z_start, mu, mu_start, scale, scale_start, step - 1, steps, valid, LOGITS, SCALE_STEP, DOUBLE
    )
    after, _, _ = standardised(
        z, z_start, mu, mu_start, scale, scale_start, step + 1, steps, valid, LOGITS, SCALE_STEP, DOUBLE
    )
    r, c, _ = correlation_at(rho, rho_start, step, steps, valid, LOGITS, RHO_STEP, DOUBLE)
    r_after, c_after, _ = correlation_at(rho, rho_start, step + 1, steps, valid, LOGITS, RHO_STEP, DOUBLE)
    e = residual(r, c, before, x)
    e_after = residual(r_after, c_after, x, after)
    by_x = held(h * (r_after * held(e_after / c_after) - held(e / c)))

    by_z = by_x / s
    by_scale = (held(-by_x * x) - h) * (1.0 if LOGITS else 1.0 / s)
    start = row * steps
    store(dz, start, step, steps, valid, by_z)
    store(dmu, start, step, steps, valid, -by_z)
    if SCALE_STEP:
        store(dscale, start, step, steps, valid, by_scale)
    else:
        total = tl.sum(tl.where(step < steps, by_scale, 0.0), 1, keep_dims=True)
        tl.store(dscale + row * chunks + chunk, total.to(dscale.dtype.element_ty), mask=valid)
    if drho is not None:
        by_logit = held(held(h * e) * (c * before - r * e)) + h * r
        by_rho = by_logit * (1.0 if LOGITS else 1.0 / (c * c))
        if RHO_STEP:
            store(drho, start - row, step - 1, steps - 1, valid, by_rho)
        else:
            tied = (step > 0) & (step < steps)
            total = tl.sum(tl.where(tied, by_rho, 0.0), 1, keep_dims=True)
            tl.store(drho + row * chunks + chunk, total.to(drho.dtype.element_ty), mask=valid)
