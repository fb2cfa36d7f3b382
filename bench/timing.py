"""Timing: one small interface for a device's clock, and interleaved repetitions over it."""

from __future__ import annotations

import ctypes
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

Call = Callable[[], object]


class Timer(Protocol):
    """A device's clock: the seconds that `number` calls take, waited for to their end."""

    def __call__(self, call: Call, number: int) -> float: ...


def cpu_timer(call: Call, number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - start


def keep_freed_memory() -> bool:
    """Let the process keep the memory that its tensors free; whether the C library (glibc) can.

    Otherwise it gives large blocks back, or not, depending on what was freed before; a tensor that has to be
    mapped anew costs more in page faults (on a virtual machine 1 ns an element and more) than a fused
    kernel.
    """
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_max, 0))


@dataclass(frozen=True)
class Quantiles:
    """Seconds a call, of `samples` samples; the quickest is what other programs disturbed least."""

    q20: float
    q50: float
    q80: float
    samples: int
    least: float = math.nan

    @classmethod
    def of(cls, seconds: list[float]) -> Quantiles:
        ordered = sorted(seconds)

        def at(q: float) -> float:
            position = q * (len(ordered) - 1)
            low = int(position)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (position - low) * (ordered[high] - ordered[low])

        return cls(at(0.2), at(0.5), at(0.8), len(ordered), ordered[0])


def interleaved(
    calls: Mapping[str, Call], timer: Timer, *, budget: float, rounds: int
) -> dict[str, Quantiles]:
    """Times all calls in alternation, so that a busy spell of the machine falls on every one of them.

    A sample is long enough (2 ms, or one call) for the clock; each round takes one of every call in a new
    order. A call that has used up `budget` seconds rests after five samples.
    """
    numbers, quick = {}, []
    for name, call in calls.items():
        timer(call, 2)  # compilation
        seconds = timer(call, 1)
        numbers[name] = max(1, round(2e-3 / max(seconds, 1e-7)))
        if seconds < 0.02:
            quick.append(call)
    for call in 10 * quick:  # the heap takes some turns to settle
        timer(call, 1)
    order = random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            if spent[name] < budget or len(samples[name]) < 5:
                seconds = timer(calls[name], numbers[name])
                spent[name] += seconds
                samples[name].append(seconds / numbers[name])
    return {name: Quantiles.of(taken) for name, taken in samples.items()}
