"""Standard normals over tiles: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and
the Box-Muller transform.

Counter: words 0-1 hold the position in the row's stream, words 2-3 the row; key: the seed. The words are those of every
backend. The logarithm, sine and cosine are made of portable arithmetic, good to 1e-6 absolute in eps.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _low(pattern: Any) -> Any:
    return (pattern & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def _high(pattern: Any) -> Any:
    return ((pattern >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def words(seed: Any, position: Any, row: Any) -> Any:
    """Four tiles of words; position and row are 64-bit patterns in int64 that broadcast together."""
    return tl.philox(seed, _low(position), _high(position), _low(row), _high(row))


@triton.jit
def _minus_two_log(word: Any) -> Any:
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (word + 1/2) 2^-32
    # Next to 1 a fast logarithm is only good to 2^-22 absolute, which the square root would make visible.
    return tl.where(u > 0.9997, 2.0 - 2.0 * u, -1.3862943611198906 * tl.log2(u))


@triton.jit
def _sine(word: Any) -> Any:
    """sin 2 pi t of t = (word + 1/2) 2^-32 turns, the word taken as signed: t lies in [-1/2, 1/2).

    t (1/4 - t^2) P(t^2), with the sine's own zeros and P fitted for the least largest error, 1.1e-7.
    """
    t = word.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    q = t * t
    p = 12.233301215067087 * q - 38.12319677652219
    p = p * q + 67.04389802647505
    p = p * q - 64.8346811101413
    p = p * q + 25.13273038155973
    return t * (0.25 - q) * p


@triton.jit
def _pair(word1: Any, word2: Any) -> Any:
    radius = tl.sqrt(_minus_two_log(word1))
    return radius * _sine(word2 + 0x40000000), radius * _sine(word2)  # a quarter turn on: the cosine


@triton.jit
def _pair_of_doubles(word1: Any, word2: Any, word3: Any, word4: Any) -> Any:
    first = (word1.to(tl.uint64) << 32) | word2.to(tl.uint64)
    second = (word3.to(tl.uint64) << 32) | word4.to(tl.uint64)
    u = first.to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20  # (word + 1/2) 2^-64
    turns = second.to(tl.int64, bitcast=True).to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20
    radius = tl.sqrt(-2.0 * tl.log(u))
    angle = 6.283185307179586477 * turns
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def normals(key: Any, row: Any, chunk: Any, STEPS: tl.constexpr, DOUBLE: tl.constexpr) -> Any:
    """eps (rows, STEPS) of the chunk-th STEPS steps.

    key: pointer to (seed, offset), 64-bit patterns. row: (rows, 1), 64-bit patterns. float32 draws four normals a block
    of words, float64 two.
    """
    seed, offset = tl.load(key), tl.load(key + 1)
    blocks: tl.constexpr = STEPS // 2 if DOUBLE else STEPS // 4
    block = chunk * blocks + tl.arange(0, blocks)[None, :]
    w0, w1, w2, w3 = words(seed, offset + block.to(tl.int64), row)
    if DOUBLE:
        e0, e1 = _pair_of_doubles(w0, w1, w2, w3)
        return tl.interleave(e0, e1)
    else:
        e0, e1 = _pair(w0, w1)
        e2, e3 = _pair(w2, w3)
        return tl.interleave(tl.interleave(e0, e2), tl.interleave(e1, e3))
