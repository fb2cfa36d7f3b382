"""Peak memory of a call beyond what it returns, seen from two sides.

- The allocator's trace counts every tensor to the byte, but nothing that C++ takes from malloc.
- The process's record of resident pages misses nothing, but sees whole pages, so it is asked of large calls.

Both run in a child process: its malloc gives every freed block back at once, which would spoil timings.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.peers import LOOP, output_gradients, peers

Outputs = Callable[[], tuple[Tensor, ...]]
FORWARD, BOTH = "forward", "forward and backward"
PAGES_FROM = 2**23  # bytes returned, from which single pages no longer matter
PAGE_READINGS = 3
MALLOC_OVERHEAD = 128  # bytes, at most
RETURN_FREED_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # to the system, by glibc's malloc


class Extra(NamedTuple):
    """Bytes beyond those returned; pages is None where the call is too small or the system cannot tell."""

    tensors: int
    pages: int | None


def _storages(outputs: tuple[Tensor, ...]) -> list[int]:
    """Bytes of each tensor returned."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in outputs}
    return list(storages.values())


def tensors_extra(call: Outputs) -> int:
    """Bytes of tensors alive at the worst moment, less those returned."""
    call()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        outputs = call()
    assert trace.profiler is not None
    events = trace.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak - sum(_storages(outputs))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _in_pages(size: int) -> int:
    """What malloc maps for so many bytes: whole pages, its own word and the tensor's alignment included."""
    return -(-(size + MALLOC_OVERHEAD) // mmap.PAGESIZE) * mmap.PAGESIZE


def pages_extra(call: Outputs) -> int | None:
    """Bytes by which the process outgrew its outputs at the worst moment.

    The least of several calls: what the kernel takes it takes every time, the system's own count of pages
    errs by some of them.
    """
    reset = Path("/proc/self/clear_refs")
    if not reset.exists() or sum(_storages(call())) < PAGES_FROM:
        return None
    grown = []
    for _ in range(PAGE_READINGS):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        reset.write_text("5")  # VmHWM, the largest VmRSS, starts anew from the present size
        outputs = call()
        returned = sum(_in_pages(size) for size in _storages(outputs))
        grown.append(max(0, _status("VmHWM") - before - returned))
        del outputs
    return min(grown)


def _extra(name: str, call: Outputs) -> Extra:
    # The loop that grows by torch.cat goes through gigabytes, a page fault at a time.
    return Extra(tensors_extra(call), None if name == LOOP else pages_extra(call))


def measure(rows: int, d: int, backend: str, compiled: bool) -> list[tuple[str, str, Extra]]:
    """(peer, direction, extra) for every peer of one size, in this process."""
    device = torch.device("cpu")
    gradients = output_gradients(rows, d, device)
    found = []
    for peer in peers(rows, d, device=device, backend=backend, compiled=compiled):
        found.append((peer.name, FORWARD, _extra(peer.name, peer.forward)))
        if peer.differentiable:
            both = partial(peer.forward_backward, gradients)
            found.append((peer.name, BOTH, _extra(peer.name, both)))
    return found


def in_child(rows: int, d: int, backend: str, compiled: bool) -> dict[tuple[str, str], Extra]:
    """The same, in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", json.dumps([rows, d, backend, compiled])]
    root = Path(__file__).resolve().parent.parent
    child = subprocess.run(
        command, env=os.environ | RETURN_FREED_BLOCKS, cwd=root, capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise SystemExit(f"The memory of {rows} x {d} could not be measured:\n{child.stderr}")
    return {(peer, direction): Extra(*extra) for peer, direction, extra in json.loads(child.stdout)}


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
