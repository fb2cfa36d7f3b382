"""The Triton backend: the same functions on any device that Triton drives. Imported when first asked for.

Kernels in `forward`, `backward` and `log_prob` over the tiles of `tiles`, with the mathematics in `chain` and
`noise`; `rows`, `blocks` and `launch` prepare them, `ops` registers them.
"""

from __future__ import annotations

import importlib
from importlib import metadata, util

import torch

from .. import native

OLDEST, NEWEST = (3, 4), (3, 9)
_INSTALL = "pip install 'triton>=3.4,<3.10' (CUDA, ROCm and XPU builds of torch bring their own)"


def unavailable(device_type: str) -> str | None:
    """None where the backend serves tensors on such devices, else why not and how to get it."""
    if native.unavailable is not None:
        return f"its autograd is in the compiled module, which needs no CUDA: {native.unavailable}"
    if util.find_spec("triton") is None:
        return f"triton is not installed: {_INSTALL}"
    installed = metadata.version("triton")
    if not OLDEST <= tuple(int(part) for part in installed.split("+")[0].split(".")[:2]) <= NEWEST:
        return f"triton {installed} is installed, 3.4 to 3.9 are supported: {_INSTALL}"
    from .launch import INTERPRETED

    if device_type == "cpu":
        if not INTERPRETED:
            return (
                "Triton compiles for GPUs. Move the tensors to one, or use backend='native'. To try the "
                "kernels on the CPU, slowly, set TRITON_INTERPRET=1 before Python starts"
            )
    elif device_type not in ("cuda", "xpu"):
        return f"Triton serves CUDA, ROCm and XPU devices, not {device_type}. Use backend='reference'"
    elif not torch.get_device_module(device_type).is_available():
        return f"torch {torch.__version__} sees no {device_type} device on this machine"
    importlib.import_module(f"{__name__}.ops")  # registers the implementations
    return None
