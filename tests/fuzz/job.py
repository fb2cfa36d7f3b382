"""What a worker is told to do."""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    """Every `stride`-th call from `first` on, `calls` of them or until `minutes` have passed."""

    seed: int
    first: int
    stride: int = 1
    calls: int | None = None
    until: float | None = None  # on time.time()'s clock
    progress: str | None = None
