"""Memory and disk: how much there is, and no for an answer before any of it is taken."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path

from rhovae.files import RunError


def available() -> int:
    """Bytes of memory that this process may still take: of the machine, its container and its limits."""
    found = [1 << 62]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)
    for line in _lines("/proc/self/cgroup"):
        group = line.strip().partition("::")[2]
        for folder in (f"/sys/fs/cgroup{group}", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
            for name in ("memory.max", "memory.limit_in_bytes"):
                found += [int(text) for text in _lines(f"{folder}/{name}") if text.strip().isdigit()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = [int(line.split()[0]) for line in _lines("/proc/self/statm")]
        found.append(max(0, soft - sum(pages) * resource.getpagesize()))
    return min(found)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def size(count: float) -> str:
    """A number of bytes in words."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    power = min(len(units) - 1, int(math.log2(max(1, count))) // 10)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


def require(need: int, what: str, remedy: str, free: int | None = None) -> None:
    """Refuse what would not fit into memory.

    Raises:
        RunError: with what it would take, and what there is.
    """
    free = available() if free is None else free
    if need > free:
        raise RunError(f"{what} would take about {size(need)} of memory, and {size(free)} is free; {remedy}")


def require_disk(need: int, folder: Path) -> None:
    """Refuse to begin what would not fit onto the disk.

    Raises:
        RunError: with what it would take, and what there is.
    """
    there = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if need > free:
        raise RunError(
            f"{folder} needs about {size(need)} of disk for its checkpoints, and {size(free)} is free: "
            "make some space, or give another --out"
        )
