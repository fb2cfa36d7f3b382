"""Files that are read without trust in what they hold, and written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import reprlib
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

_TEXT_LIMIT = 64 << 20
_REMEDIES = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "its disk is read-only: give a folder elsewhere",
    errno.EACCES: "make its folder writable, or give another",
    errno.EPERM: "make its folder writable, or give another",
}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class RunError(Exception):
    """A file, folder or setting that cannot be used as asked; the message says what to do."""


def shown(value: object) -> str:
    """A value from a file as it stands in a message: short, whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python prints
        return f"a {type(value).__name__} too long to show"


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading, and nothing that could keep its reader waiting.

    Raises:
        RunError: it is missing, may not be read, or is a folder, a pipe or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{shown(str(path))} is no path: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{path} cannot be read: it is a {'folder' if path.is_dir() else 'pipe or a device'}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int = _TEXT_LIMIT) -> bytes:
    """The content of a file of at most ``most`` bytes.

    Raises:
        RunError: it cannot be read, or is larger.
    """
    with open_regular(path) as stream:
        try:
            content = stream.read(most + 1)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise RunError(
            f"{path} cannot be read: it has more than {most:,} bytes, too many for what it should be"
        )
    return content


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and let it be made again") from error


def write_json(content: Any, path: Path) -> None:
    """Replace the file as a whole."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside the file, flush, then take its name: a crash leaves the old content or the new.

    The file beside it is made anew under a name of its own, so that no link that somebody put there is
    followed; a link in the place of ``path`` is replaced.

    Raises:
        RunError: it cannot be written, for want of space or of leave, and the old content stays; or what has
            its name is no file, but a folder, a pipe or a device.
    """
    try:
        if os.path.lexists(path) and not path.is_symlink() and not path.is_file():
            raise RunError(f"{path} cannot be written: what has this name is no file; give another path")
        _remove_left_overs(path)
        temporary, descriptor = _new_beside(path)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        # the new name is itself only on the disk once its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunError(_cannot_write(path, error)) from error


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made.

    Raises:
        RunError: with the reason.
    """
    try:
        temporary, descriptor = _new_beside(folder / "test")
        os.close(descriptor)
        temporary.unlink()
    except OSError as error:
        raise RunError(_cannot_write(folder, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "give another path")
    return (
        f"{path} cannot be written: {error.strerror or error}; {remedy}. What was there before is untouched"
    )


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."


def _new_beside(path: Path) -> tuple[Path, int]:
    """A new file, locked as long as it is open."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.part")
        descriptor = os.open(temporary, flags, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # another writer may have taken it for a left-over before it was locked
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_left_overs(path: Path) -> None:
    """Delete what killed writers of this file left; their locks have gone with them."""
    for found in os.listdir(path.parent):
        if not (found.startswith(_prefix(path)) and found.endswith(".part")):
            continue
        try:
            descriptor = os.open(
                path.parent / found, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError:  # a link, or another writer was quicker
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (path.parent / found).unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
