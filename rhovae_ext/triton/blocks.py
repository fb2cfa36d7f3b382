"""The one table of block sizes.

They follow from what a row is, never from how many there are: so no result does either.
Chosen from compiled code for sm_80 and sm_90 (registers, spills, instructions an element); no autotuning.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """What suits a kind of rows."""

    of_a_warp: int  # elements of a warp: more share the row's own work, fewer leave registers
    longest: int  # the longest row in one tile; longer ones are cut into chunks of that length


# By the bytes of the arithmetic, and whether s or rho has a value per step.
TILES = {
    (4, False): Tile(512, 4096),
    (4, True): Tile(256, 2048),
    (8, False): Tile(256, 1024),
    (8, True): Tile(256, 1024),
}
SHORTEST = 4  # steps of a tile: one block of random words
FOLD = 64  # chunks whose maps are composed at once


class Blocks(NamedTuple):
    """How a row is laid over programs."""

    rows: int  # rows of a tile
    steps: int  # steps of a tile
    chunks: int  # tiles along a row
    warps: int


def blocks_for(steps: int, element_size: int, per_step: bool) -> Blocks:
    """The tiles for rows of `steps` steps."""
    tile = TILES[element_size, per_step]
    if steps > tile.longest:  # chunks go back by the adjoint, as parameters per step do
        tile = TILES[element_size, True]
    # Compared, not computed, so that what is traced with symbolic lengths holds for every length of a tile.
    length = SHORTEST
    while length < tile.longest and length < steps:
        length *= 2
    if steps > length:
        rows, chunks = 1, -(-steps // length)
    else:
        rows, chunks = max(1, tile.of_a_warp // length), 1
    return Blocks(rows, length, chunks, max(1, length // tile.of_a_warp))
