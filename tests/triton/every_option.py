"""Run by test_compiled in a process of its own: compiles the kernels under options that come by every branch.

python -m tests.triton.every_option cuda
python -m tests.triton.every_option hip
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget

from bench.triton_code import Launch, machine_code
from rhovae_ext.triton import chain, noise, ops

TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
DOUBLE, SINGLE, BFLOAT, HALF = torch.float64, torch.float32, torch.bfloat16, torch.float16


def empty(*shape: int, dtype: torch.dtype = SINGLE) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(
    dtype: torch.dtype,
    d: int,
    *,
    logits: bool,
    per_step: bool = False,
    samples: int | None = None,
    kl: int = 1,
    given: bool = False,
    dz: bool = True,
    dkl: bool = True,
    strided: bool = False,
    parameters: torch.dtype | None = None,
) -> list[Launch]:
    """Of the four ops. given: eps with a gradient. strided: rows walked by two strides."""
    lead = (4, 5)
    mu = empty(5, 4, d, dtype=dtype).transpose(0, 1) if strided else empty(*lead, d, dtype=dtype)
    own = parameters or dtype
    scale, rho = (
        empty(*lead, width, dtype=own) if per_step else empty(*lead, dtype=own) for width in (d, d - 1)
    )
    z = empty(*([] if samples is None else [samples]), *lead, d, dtype=dtype)
    key = None if given else torch.empty(2, dtype=torch.uint64, device="meta")
    eps = z if given else None
    wide = DOUBLE if dtype == DOUBLE else SINGLE
    sums = empty(*lead, dtype=wide)
    by_kl = None if not (dkl and kl) else sums if kl == 1 else empty(*lead, d, dtype=wide)
    seen: list[Launch] = []

    def record(kernel: Any, _grid: Any, _like: Any, arguments: dict[str, Any]) -> None:
        seen.append(Launch(kernel, arguments))

    ops.ar1(record, mu, scale, rho, key, eps, samples, 0, logits, True, kl)
    by_z = z if dz else None
    ops.ar1_backward(record, by_z, by_kl, mu, scale, rho, key, eps, samples, 0, logits, kl, given and dz)
    if dz and dkl:
        ops.ar1_log_prob(record, mu, mu, scale, rho, logits)
        ops.ar1_log_prob_backward(record, sums, mu, mu, scale, rho, logits)
    return seen


def main(backend: str) -> None:
    if backend != "cuda":
        chain.NVIDIA = noise.NVIDIA = tl.constexpr(False)  # type: ignore[attr-defined]
    options = [
        launches(SINGLE, 6, logits=False, per_step=True, samples=3, given=True),
        launches(SINGLE, 5000, logits=True, samples=2, kl=0, dkl=False, given=True),
        launches(BFLOAT, 3000, logits=True, per_step=True, parameters=SINGLE, kl=2, dkl=False),
        launches(SINGLE, 8, logits=True, strided=True),
        launches(SINGLE, 1, logits=False, dkl=False),
        launches(DOUBLE, 7, logits=False, kl=2, samples=2),
        launches(HALF, 64, logits=True, kl=2, dz=False),
    ]
    compiled = [launch for some in (options if backend == "cuda" else options[:3]) for launch in some]
    for launch in compiled:
        assert len(machine_code(launch, TARGETS[backend])) > 0
    print(json.dumps({"compiled": len(compiled)}))


if __name__ == "__main__":
    main(sys.argv[1])
