"""Standard normals over tiles: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011) and the Box-Muller transform.

Counter: words 0-1 hold the position in the row's stream, words 2-3 the row; key: the seed. The words are
those of every backend. In float32 NVIDIA's GPUs compute the logarithm, sine and cosine by one instruction
each, to 2^-20 absolute; other devices, and the interpreter, by portable arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import NVIDIA, fast


@triton.jit
def _low(pattern):
    return (pattern & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def _high(pattern):
    return ((pattern >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def words(seed, position, row):
    """Four tiles of words; position and row are 64-bit patterns in int64 that broadcast together."""
    return tl.philox(seed, _low(position), _high(position), _low(row), _high(row))


@triton.jit
def _minus_two_log(word):
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (word + 1/2) 2^-32
    log2 = fast(u, "lg2") if NVIDIA else tl.log2(u)
    # Next to 1 a fast logarithm is only good to 2^-22 absolute, which the square root would make visible.
    return tl.where(u > 0.9997, 2.0 - 2.0 * u, -1.3862943611198906 * log2)


@triton.jit
def _sine(t):
    """sin 2 pi t for |t| <= 1/2 as t (1/4 - t^2) P(t^2): the sine's own zeros, and P fitted to 1.1e-7."""
    q = t * t
    p = 12.233301215067087 * q - 38.12319677652219
    p = p * q + 67.04389802647505
    p = p * q - 64.8346811101413
    p = p * q + 25.13273038155973
    return t * (0.25 - q) * p


@triton.jit
def _turns(word):
    """(word + 1/2) 2^-32 of the signed word: the same angle, where fast functions are best."""
    return word.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def _pair(word1, word2):
    radius = tl.sqrt(_minus_two_log(word1))
    if NVIDIA:
        angle = 6.283185307179586477 * _turns(word2)
        return radius * fast(angle, "cos"), radius * fast(angle, "sin")
    else:
        quarter_turn_on = word2 + 0x40000000
        return radius * _sine(_turns(quarter_turn_on)), radius * _sine(_turns(word2))


@triton.jit
def _pair_of_doubles(word1, word2, word3, word4):
    first = (word1.to(tl.uint64) << 32) | word2.to(tl.uint64)
    second = (word3.to(tl.uint64) << 32) | word4.to(tl.uint64)
    u = first.to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20  # (word + 1/2) 2^-64
    turns = second.to(tl.int64, bitcast=True).to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20
    radius = tl.sqrt(-2.0 * tl.log(u))
    angle = 6.283185307179586477 * turns
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def normals(key, row, chunk, STEPS: tl.constexpr, DOUBLE: tl.constexpr):
    """eps (rows, STEPS) of the chunk-th STEPS steps.

    key: pointer to (seed, offset), 64-bit patterns. row: (rows, 1), 64-bit patterns. float32 draws four
    normals a block of words, float64 two.
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
