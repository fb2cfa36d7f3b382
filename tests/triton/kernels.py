"""Kernels around single functions of the backend."""

from __future__ import annotations

import triton
import triton.language as tl

from rhovae_ext.triton.noise import _pair, words


@triton.jit
def write_words(seed, position, row, out):
    """out (n, 4) in int64; one program a counter."""
    n = tl.program_id(0)
    at = tl.load(position + n) + tl.arange(0, 1)[None, :]
    w0, w1, w2, w3 = words(tl.load(seed + n), at, tl.load(row + n) + tl.arange(0, 1)[:, None])
    here = out + 4 * n + tl.arange(0, 1)[None, :]
    tl.store(here, w0.to(tl.int64))
    tl.store(here + 1, w1.to(tl.int64))
    tl.store(here + 2, w2.to(tl.int64))
    tl.store(here + 3, w3.to(tl.int64))


@triton.jit
def write_pairs(first, second, out, count, SIZE: tl.constexpr):
    """out (count, 2): the two normals of each pair of words, patterns in int32."""
    n = tl.arange(0, SIZE)
    inside = n < count
    word1 = tl.load(first + n, mask=inside, other=0).to(tl.uint32, bitcast=True)
    word2 = tl.load(second + n, mask=inside, other=0).to(tl.uint32, bitcast=True)
    e0, e1 = _pair(word1, word2)
    tl.store(out + 2 * n, e0, mask=inside)
    tl.store(out + 2 * n + 1, e1, mask=inside)
