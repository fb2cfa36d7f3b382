"""The one table of block sizes. They follow from a row's length alone, so that no result depends on how many rows there are.

Chosen from compiled code for sm_80 and sm_90 (registers, spills, instructions an element); no autotuning.
"""

from __future__ import annotations

from typing import NamedTuple

# The longest row that one tile holds, by the bytes of its arithmetic: longer ones are cut into chunks of that length.
LONGEST = {4: 4096, 8: 2048}
SHORTEST = 4  # one block of random words
ELEMENTS = 512  # of a tile, where rows are shorter than that
ELEMENTS_PER_WARP = 512
MOST_WARPS = 8
FOLD = 64  # chunks whose maps are composed at once


class Blocks(NamedTuple):
    """How a row is laid over programs."""

    rows: int  # rows of a tile
    steps: int  # steps of a tile
    chunks: int  # tiles along a row
    warps: int


def blocks_for(steps: int, element_size: int) -> Blocks:
    """The tiles for rows of `steps` steps."""
    longest = LONGEST[element_size]
    # Compared, not computed, so that what is traced with symbolic lengths holds for every length of a tile.
    length = SHORTEST
    while length < longest and length < steps:
        length *= 2
    # A row of several chunks has its tiles to itself.
    rows, chunks = (max(1, ELEMENTS // length), 1) if steps <= length else (1, -(-steps // length))
    warps = min(MOST_WARPS, max(1, rows * length // ELEMENTS_PER_WARP))
    return Blocks(rows, length, chunks, warps)
