"""Which tile (rows, steps) a program holds, and how tiles of strided tensors are read and written."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def place(samples: Any, chunks: Any, ROWS: tl.constexpr, STEPS: tl.constexpr) -> Any:
    """(row, step, sample, chunk) of this program: row (rows, 1) and step (1, steps) are numbers in the whole."""
    program = tl.program_id(0)
    chunk = program % chunks
    sample = program // chunks % samples
    row = (program // chunks // samples).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    return row, chunk * STEPS + tl.arange(0, STEPS)[None, :], sample, chunk


@triton.jit
def row_starts(
    row: Any,
    inner: Any,
    outer_stride: Any,
    inner_stride: Any,
    offset: Any,
    AXES: tl.constexpr,
    ALIGN: tl.constexpr,
) -> Any:
    """Where the rows begin, (rows, 1), walked by one stride or by two: the second `inner` times for each of the first.

    All of them are multiples of ALIGN.
    """
    if AXES == 1:
        start = row * inner_stride
    else:
        start = row // inner * outer_stride + row % inner * inner_stride
    return tl.multiple_of(offset + start, (ALIGN, ALIGN))


@triton.jit
def load(
    tensor: Any,
    start: Any,
    step: Any,
    count: Any,
    valid: Any,
    other: tl.constexpr,
    STEP: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> Any:
    """Values (rows, steps), or (rows, 1) where a row has one, in the arithmetic's type; `other` outside [0, count)."""
    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if STEP:
        value = tl.load(tensor + start + step, mask=valid & (step >= 0) & (step < count), other=other)
    else:
        value = tl.load(tensor + start, mask=valid, other=other)
    return value.to(real)


@triton.jit
def store(tensor: Any, start: Any, step: Any, count: Any, valid: Any, value: Any) -> None:
    """Writes a tile in the tensor's type; steps outside [0, count) are left alone."""
    tl.store(tensor + start + step, value.to(tensor.dtype.element_ty), mask=valid & (step >= 0) & (step < count))
