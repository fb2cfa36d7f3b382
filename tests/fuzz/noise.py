"""The noise of section 3 of the contract in NumPy: Philox4x32-10, the layout of its counters, Box-Muller."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.fuzz.rounding import REAL, Array

Words = npt.NDArray[np.uint64]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: list[Words], seed: int) -> list[Words]:
    """Ten rounds on four words of 32 bits, held in 64."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, c = (second >> _HALF) ^ b ^ np.uint64(k0), (first >> _HALF) ^ d ^ np.uint64(k1)
        b, d = second & _LOW, first & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def rows_of(count: int, row_offset: int, num_samples: int | None) -> Words:
    """The rows' numbers modulo 2^64, (K, rows) with samples."""
    rows: Words = np.arange(count, dtype=np.uint64) + np.uint64(row_offset % 2**64)
    if num_samples is None:
        return rows
    numbered: Words = rows * np.uint64(num_samples) + np.arange(num_samples, dtype=np.uint64)[:, None]
    return numbered


def normals(seed: int, offset: int, rows: Words, steps: int, double: bool) -> tuple[Array, Array]:
    """Standard normals (*rows.shape, steps), and how far a kernel may be from each."""
    per_block = 2 if double else 4
    blocks = np.arange(-(-steps // per_block), dtype=np.uint64) + np.uint64(offset)
    counter: list[Any] = [blocks & _LOW, blocks >> _HALF, rows[..., None] & _LOW, rows[..., None] >> _HALF]
    words = philox([word.copy() for word in np.broadcast_arrays(*counter)], seed)
    w = [word.astype(REAL) for word in words]
    if double:
        two32, two64 = REAL(2) ** -32, REAL(2) ** -64
        pairs = [(w[0] * two32 + (w[1] + REAL(0.5)) * two64, w[2] * two32 + (w[3] + REAL(0.5)) * two64)]
    else:
        uniform = [(word + REAL(0.5)) * REAL(2) ** -32 for word in w]
        pairs = [(uniform[0], uniform[1]), (uniform[2], uniform[3])]
    eps, slack = [], []
    for u1, u2 in pairs:
        radius, angle = np.sqrt(-2 * np.log(u1)), 2 * np.arccos(REAL(-1)) * u2
        eps += [radius * np.cos(angle), radius * np.sin(angle)]
        slack += [np.where(u1 > 1 - 1e-5, 1e-4, 1e-5) if not double else np.full(u1.shape, 1e-12)] * 2
    shape = (*rows.shape, per_block * len(blocks))
    together = [np.stack(values, -1).reshape(shape)[..., :steps] for values in (eps, slack)]
    return together[0], together[1]
