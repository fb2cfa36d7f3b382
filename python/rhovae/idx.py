"""Reader of the idx files in which MNIST and its relatives are published, gzipped or not."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rhovae.files import RunError, open_regular
from rhovae.memory import require

_UINT8 = 0x08
# what the format can at most make of a byte
_DEFLATE = 1032
_KINDS = {1: "labels (1 axis)", 3: "images (3 axes)"}


class DataError(RunError):
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
    with open_regular(found) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            if found == zipped:
                with gzip.open(file) as stream:
                    return _read(stream, axes, size * _DEFLATE, found, help)
            return _read(file, axes, size, found, help)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{found} cannot be read ({error}): truncated or damaged. {help}") from error


def _read(
    stream: BinaryIO | gzip.GzipFile, axes: int, most: int, found: Path, help: str
) -> NDArray[np.uint8]:
    """The array of a stream of at most ``most`` bytes, which bound the memory whatever its header says."""
    header = 4 + 4 * axes
    expected = bytes((0, 0, _UINT8, axes))
    content = stream.read(header)
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
    announced = math.prod(shape)
    require(2 * min(announced, most), f"{found}: its {announced:,} bytes", f"is it the right file? {help}")
    content = stream.read(min(announced, most) + 1)
    if len(content) != announced:
        held = f"more than {announced}" if len(content) > announced else str(len(content))
        raise DataError(
            f"{found}: the header announces {' x '.join(map(str, shape))} bytes, the file holds "
            f"{held}: truncated or damaged. {help}"
        )
    array: NDArray[np.uint8] = np.frombuffer(content, np.uint8).reshape(shape).copy()
    return array
