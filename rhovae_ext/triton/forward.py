"""The sample and its KL to N(0, I): KL_k = 1/2 (mu_k^2 + s_k^2 - 1) - log s_k - log c_k (k = 1 has no last term)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .chain import at_column, carry_into, correlation_of, scale_of, scan
from .launch import INTEGERS
from .noise import normals
from .tiles import load, place, row_starts, store


@triton.jit
def noise(
    eps: Any,
    eps_start: Any,
    key: Any,
    row_offset: Any,
    row: Any,
    step: Any,
    sample: Any,
    chunk: Any,
    steps: Any,
    samples: Any,
    valid: Any,
    STEPS: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> Any:
    """eps of a tile, read where it is given, else drawn: with samples, every sample of a row is a row of its own."""
    if eps is not None:
        return load(eps, eps_start, step, steps, valid, 0.0, True, DOUBLE)
    else:
        return normals(key, (row_offset + row) * samples + sample, chunk, STEPS, DOUBLE)


@triton.jit
def chain(rho: Any, c: Any, eps: Any, step: Any) -> Any:
    """The scan of x within a tile; the first step of all has rho = 0 and c = 1."""
    return scan(tl.where(step == 0, 0.0, rho), tl.where(step == 0, eps, c * eps), False)


@triton.jit(do_not_specialize=INTEGERS)
def forward(
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
    z: Any,
    kl: Any,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    chunks: tl.int32,
    LOGITS: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    RHO_STEP: tl.constexpr,
    KL: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    FOLD: tl.constexpr,
) -> None:
    """z (samples, rows, steps) unless None; kl as KL says: 0 none, 1 (rows, chunks), 2 (rows, steps).

    weights, values: None, or of `totals`, (samples, rows, chunks).
    """
    row, step, sample, chunk = place(samples, chunks, ROWS, STEPS)
    valid = row < rows
    steps = steps // ALIGN * ALIGN
    mean = load(mu, row_starts(row, inner, mu_outer, mu_inner, 0, AXES, ALIGN), step, steps, valid, 0.0, True, DOUBLE)
    scale_align: tl.constexpr = ALIGN if SCALE_STEP else 1
    scale_start = row_starts(row, inner, scale_outer, scale_inner, 0, AXES, scale_align)
    s, log_s = scale_of(load(scale, scale_start, step, steps, valid, 1.0, SCALE_STEP, DOUBLE), LOGITS)
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    r, c, minus_log_c = correlation_of(
        load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE), LOGITS
    )

    if z is not None:
        eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
        e = noise(
            eps, eps_start, key, row_offset, row, step, sample, chunk, steps, samples, valid, STEPS, DOUBLE
        )
        weight, x = chain(r, c, e, step)
        if weights is not None:
            first = (sample * rows + row) * chunks
            x += weight * carry_into(weights + first, values + first, chunk, chunks, False, FOLD)
        start = tl.multiple_of((sample * rows + row) * steps, (ALIGN, ALIGN))
        store(z, start, step, steps, valid, mean + s * x)

    if KL > 0:
        divergence = 0.5 * (mean * mean + s * s - 1.0) - log_s + tl.where(step == 0, 0.0, minus_log_c)
        valid = valid & (sample == 0)
        if KL == 1:
            total = tl.sum(tl.where(step < steps, divergence, 0.0), 1, keep_dims=True)
            tl.store(kl + row * chunks + chunk, total, mask=valid)
        else:
            store(kl, tl.multiple_of(row * steps, (ALIGN, ALIGN)), step, steps, valid, divergence)


@triton.jit(do_not_specialize=INTEGERS)
def totals(
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
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    chunks: tl.int32,
    LOGITS: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """The map x -> weight x + value of every chunk of a row too long for one tile: (samples, rows, chunks)."""
    row, step, sample, chunk = place(samples, chunks, ROWS, STEPS)
    valid = row < rows
    steps = steps // ALIGN * ALIGN
    rho_start = row_starts(row, inner, rho_outer, rho_inner, 0, AXES, 1)
    r, c, _ = correlation_of(load(rho, rho_start, step - 1, steps - 1, valid, 0.0, RHO_STEP, DOUBLE), LOGITS)
    eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
    e = noise(
        eps, eps_start, key, row_offset, row, step, sample, chunk, steps, samples, valid, STEPS, DOUBLE
    )
    weight, x = chain(r, c, e, step)
    place_of_chunk = (sample * rows + row) * chunks + chunk
    tl.store(weights + place_of_chunk, at_column(weight, STEPS - 1), mask=valid)
    tl.store(values + place_of_chunk, at_column(x, STEPS - 1), mask=valid)
