"""Which tile (rows, steps) a program holds, and how tiles of strided tensors are read and written."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(chunks, CHUNKED: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """(row, step, chunk) of this program: row (rows, 1) and step (1, steps) are numbers in the whole."""
    tile = tl.program_id(0)
    chunk = 0
    if CHUNKED:  # an integer division is worth avoiding
        chunk = tile % chunks
        tile = tile // chunks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, chunk * STEPS + tl.arange(0, STEPS)[None, :], chunk


@triton.jit
def row_starts(
    row,
    inner,
    outer_stride,
    inner_stride,
    offset,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Where the rows begin, (rows, 1), walked by one stride or by two: the second `inner` times for each of
    the first.

    Offset and strides count groups of ALIGN elements: so the compiler knows what it may read at once.
    """
    if AXES == 1:  # noqa: SIM108 (the other branch is not to be compiled)
        start = row * inner_stride
    else:
        start = row // inner * outer_stride + row % inner * inner_stride
    return (offset + start) * ALIGN


@triton.jit
def load(
    tensor,
    start,
    step,
    count,
    valid,
    other: tl.constexpr,
    STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """(rows, steps), or (rows, 1) where a row has one value, in the arithmetic's type; else `other`."""
    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if STEP:
        value = tl.load(tensor + start + step, mask=valid & (step >= 0) & (step < count), other=other)
    else:
        value = tl.load(tensor + start, mask=valid, other=other)
    return value.to(real)


@triton.jit
def along(
    tensor,
    outer_stride,
    inner_stride,
    row,
    inner,
    step,
    count,
    valid,
    other: tl.constexpr,
    STEP: tl.constexpr,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """`load` of an operand without samples, from where its rows begin; one value a row is never aligned."""
    align: tl.constexpr = ALIGN if STEP else 1
    start = row_starts(row, inner, outer_stride, inner_stride, 0, AXES, align)
    return load(tensor, start, step, count, valid, other, STEP, DOUBLE)


@triton.jit
def store(tensor, start, step, count, valid, value):
    """Writes a tile in the tensor's type; steps outside [0, count) are left alone."""
    tl.store(
        tensor + start + step, value.to(tensor.dtype.element_ty), mask=valid & (step >= 0) & (step < count)
    )


@triton.jit
def row_sum(value, step, chunk, first, last, STEPS: tl.constexpr):
    """Sum over the tile's steps in [first, last), (rows, 1), of values per step or of one for all of them."""
    if value.shape[1] == 1:
        count = tl.minimum(last, (chunk + 1) * STEPS) - tl.maximum(first, chunk * STEPS)
        return value * count.to(value.dtype)
    else:
        return tl.sum(tl.where((step >= first) & (step < last), value, 0.0), 1, keep_dims=True)
