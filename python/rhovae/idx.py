"""Reader of the idx files in which MNIST and its relatives are published, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UINT8 = 0x08
_KINDS = {1: "labels (1 axis)", 3: "images (3 axes)"}


class DataError(Exception):
    """A data set that is not there or not what it should be; the message says how to get it."""


def read_idx(path: Path, axes: int, help: str) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an idx file, checked against its header.

    Args:
        path: the file, without or with ``.gz``; the other spelling is tried too.
        axes: how many axes it must have: 3 for images, 1 for labels.
        help: how to get a good copy, for the error message.

    Raises:
        DataError: missing, unreadable, not idx, of another kind, or shorter or longer than its header says.
    """
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    zipped = plain.with_name(plain.name + ".gz")
    found = next((p for p in (plain, zipped) if p.is_file()), None)
    if found is None:
        raise DataError(f"{plain} is missing (nor is there {zipped.name}). {help}")
    try:
        content = gzip.decompress(found.read_bytes()) if found == zipped else found.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found} cannot be read ({error}): truncated or damaged. {help}") from error

    header = 4 + 4 * axes
    expected = bytes((0, 0, _UINT8, axes))
    if content[:4] != expected:
        what = ""
        if len(content) >= 4 and content[:3] == expected[:3] and content[3] in _KINDS:
            what = f": it holds {_KINDS[content[3]]}"
        raise DataError(
            f"{found} is not an idx file of {_KINDS[axes]}: expected it to begin with {expected.hex(' ')}, "
            f"got {content[:4].hex(' ') or 'nothing'}{what}. {help}"
        )
    if len(content) < header:
        raise DataError(f"{found} ends inside its header after {len(content)} bytes. {help}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{found}: the header announces {' x '.join(map(str, shape))} bytes, the file holds "
            f"{len(content) - header}: truncated or damaged. {help}"
        )
    array: NDArray[np.uint8] = np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
    return array
