"""The sample and its KL to N(0, I).

KL_k = 1/2 (mu_k^2 + s_k^2 - 1) - log s_k - log c_k, without the last term at k = 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import at_column, carry_into, correlation_of, product, scale_of, scan
from .launch import INTEGERS
from .noise import normals
from .tiles import along, load, place, row_starts, row_sum, store


@triton.jit
def noise(
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
    STEPS: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """eps of a tile, read where it is given, else drawn; every sample of a row draws as a row of its own."""
    if eps is not None:
        return load(eps, eps_start, step, steps, valid, 0.0, True, DOUBLE)
    else:
        return normals(key, (row_offset + row) * samples + sample, chunk, STEPS, DOUBLE)


@triton.jit
def innovation(c, eps, step):
    """c_k eps_k; the first step has c = 1, and nothing before it that its rho could reach."""
    return tl.where(step == 0, 1.0, c) * eps


@triton.jit(do_not_specialize=INTEGERS)
def forward(
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
    z,
    kl,
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    first_sample: tl.int32,
    chunks: tl.int32,
    CHUNKED: tl.constexpr,
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
):
    """z (samples, rows, steps) unless None; kl as KL says: 0 none, 1 (rows, chunks), 2 (rows, steps).

    weights, values: where rows are CHUNKED, of `totals`: (samples, rows, chunks). Programs: tiles, samples.
    """
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    mean = along(mu, mu_outer, mu_inner, row, inner, step, steps, valid, 0.0, True, AXES, ALIGN, DOUBLE)
    given = along(
        scale, scale_outer, scale_inner, row, inner, step, steps, valid, 1.0, SCALE_STEP, AXES, ALIGN, DOUBLE
    )
    s, _, kl_of_s = scale_of(given, LOGITS)
    given = along(
        rho, rho_outer, rho_inner, row, inner, step - 1, steps - 1, valid, 0.0, RHO_STEP, AXES, 1, DOUBLE
    )
    r, c, minus_log_c = correlation_of(given, LOGITS)

    if z is not None:
        sample = first_sample + tl.program_id(1)
        eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
        e = noise(
            eps, eps_start, key, row_offset, row, step, sample, chunk, steps, samples, valid, STEPS, DOUBLE
        )
        weight, x = scan(r, innovation(c, e, step), False)
        if CHUNKED:
            first = (sample * rows + row) * chunks
            x += weight * carry_into(weights + first, values + first, chunk, chunks, False, FOLD)
        store(z, (sample * rows + row) * steps, step, steps, valid, mean + s * x)

    if KL > 0:
        of_mean = 0.5 * mean * mean
        valid = row < tl.where(first_sample + tl.program_id(1) == 0, rows, 0)  # by one sample alone
        if KL == 1:
            total = tl.sum(of_mean, 1, keep_dims=True) + row_sum(kl_of_s, step, chunk, 0, steps, STEPS)
            total += row_sum(minus_log_c, step, chunk, 1, steps, STEPS)
            tl.store(kl + row * chunks + chunk, total, mask=valid)
        else:
            of_rho = tl.where(step == 0, 0.0, minus_log_c)
            store(kl, row * steps, step, steps, valid, of_mean + kl_of_s + of_rho)


@triton.jit(do_not_specialize=INTEGERS)
def totals(
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
    rows: tl.int64,
    inner: tl.int64,
    steps: tl.int32,
    samples: tl.int32,
    first_sample: tl.int32,
    chunks: tl.int32,
    CHUNKED: tl.constexpr,
    LOGITS: tl.constexpr,
    RHO_STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The map x -> weight x + value of every chunk: (samples, rows, chunks). Programs: tiles, samples."""
    row, step, chunk = place(chunks, CHUNKED, ROWS, STEPS)
    valid = row < rows
    steps *= ALIGN
    given = along(
        rho, rho_outer, rho_inner, row, inner, step - 1, steps - 1, valid, 0.0, RHO_STEP, AXES, 1, DOUBLE
    )
    r, c, _ = correlation_of(given, LOGITS)
    sample = first_sample + tl.program_id(1)
    eps_start = row_starts(row, inner, eps_outer, eps_inner, sample * eps_sample, AXES, ALIGN)
    e = noise(eps, eps_start, key, row_offset, row, step, sample, chunk, steps, samples, valid, STEPS, DOUBLE)
    weight, x = scan(r, innovation(c, e, step), False)
    map_of_chunk = (sample * rows + row) * chunks + chunk
    total = at_column(weight, STEPS - 1)
    if not DOUBLE:
        # Nothing is added: a kernel that does not read the scan's weight spills its registers.
        total = product(r, c, STEPS) + 0.0 * total
    tl.store(weights + map_of_chunk, total, mask=valid)
    tl.store(values + map_of_chunk, at_column(x, STEPS - 1), mask=valid)
