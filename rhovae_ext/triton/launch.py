"""How a kernel is launched: at once, or as a node of the graph that torch.compile traces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

# With TRITON_INTERPRET=1 in the environment before Triton is imported, NumPy runs the kernels.
INTERPRETED: bool = triton.knobs.runtime.interpret

# Whether the kernels may hold NVIDIA's own instructions: a build of torch serves GPUs of one maker.
NVIDIA = not INTERPRETED and torch.version.hip is None and torch.version.xpu is None

# Integers that change from call to call: none of their values is worth a compilation of its own.
INTEGERS = [
    "rows",
    "inner",
    "steps",
    "samples",
    "first_sample",
    "chunks",
    "row_offset",
    *(
        f"{name}_{stride}"
        for name in ("mu", "scale", "rho", "eps", "z", "dz", "dkl", "dlog_prob")
        for stride in ("sample", "outer", "inner")
    ),
]

# kernel, grid, a tensor on the device, arguments
Launch = Callable[[Any, tuple[int, int], Tensor, dict[str, Any]], None]

# What is added up with either sign is held here: infinite terms would cancel to NaN.
LARGEST_TERM = {torch.float32: 2.0**115, torch.float64: 2.0**1000}

MOST_SAMPLES = 65535  # of one launch: the limit of a grid's second axis


def _on(device: torch.device) -> AbstractContextManager[Any]:
    # A kernel is launched on the current device, whatever its tensors are on.
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def now(kernel: Any, grid: tuple[int, int], like: Tensor, arguments: dict[str, Any]) -> None:
    """Launches on the tensors' device, on its current stream."""
    with _on(like.device):
        kernel[grid](**arguments)


def traced(kernel: Any, grid: tuple[int, int], like: Tensor, arguments: dict[str, Any]) -> None:
    """Leaves the launch in the graph."""
    torch.library.wrap_triton(kernel)[grid](**arguments)


def for_samples(
    launch: Launch, kernel: Any, tiles: int, samples: int, like: Tensor, arguments: dict[str, Any]
) -> None:
    """Launches a kernel whose grid is (tiles, samples)."""
    first = 0
    while samples - first > MOST_SAMPLES:
        launch(kernel, (tiles, MOST_SAMPLES), like, arguments | {"first_sample": first})
        first += MOST_SAMPLES
    launch(kernel, (tiles, samples - first), like, arguments | {"first_sample": first})
