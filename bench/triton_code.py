"""The machine code of the Triton kernels, compiled for named NVIDIA targets: no GPU is needed.

    python -m bench.triton_code            # a table: registers, spills, instructions an element
    python -m bench.triton_code --json

An element costs the instructions of its thread shared over the thread's elements: the kernels are straight
lines, whose one loop, over samples, is counted once. Beside them: the compiled CUDA kernels, counted alike.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # machine code is what this is about

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.cuda_sass import read_cubin
from rhovae_ext.triton import ops

TARGETS = (80, 90)
LENGTHS = (10, 64, 256, 1024, 4096, 10_000)
# Of the CUDA kernels: a whole row of 256 on sm_90, one rho a row (bench/results/cuda-budget.md).
CUDA = {"forward": 51.9, "backward": 63.9}
_POINTER = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    """One launch: the kernel and the arguments that it would have had."""

    kernel: Any
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a compiled kernel takes."""

    target: int
    kernel: str
    d: int
    parameters: str
    dtype: str
    tile: str
    warps: int
    registers: int
    stack: int
    spills: int
    instructions_per_element: float


def launches(d: int, dtype: torch.dtype, per_step: bool, rows: int = 8192) -> Iterator[Launch]:
    """Every launch of a forward and backward with noise and KL, and of the density's."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    mu = empty(rows, d)
    scale, rho = (empty(rows, d), empty(rows, d - 1)) if per_step else (empty(rows), empty(rows))
    key = torch.empty(2, dtype=torch.uint64, device="meta")
    sums = torch.empty(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="meta")
    seen: list[Launch] = []

    def record(kernel: Any, _grid: Any, _like: Any, arguments: dict[str, Any]) -> None:
        seen.append(Launch(kernel, arguments))

    ops.ar1(record, mu, scale, rho, key, None, None, 0, True, True, 1)
    ops.ar1_backward(record, mu, sums, mu, scale, rho, key, None, None, 0, True, 1, False)
    ops.ar1_log_prob(record, mu, mu, scale, rho, True)
    ops.ar1_log_prob_backward(record, sums, mu, mu, scale, rho, True)
    done = set()
    for launch in seen:  # x is scanned in chunks forward and backward alike
        if launch.kernel.__name__ not in done:
            done.add(launch.kernel.__name__)
            yield launch


def machine_code(launch: Launch, target: GPUTarget) -> bytes:
    """What a launch compiles to: a cubin for NVIDIA, an hsaco for AMD."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTER[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.arguments["num_warps"]}
    compiled = triton.compile(source, target=target, options=options)
    code: bytes = compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]
    return code


def cost(launch: Launch, target: int, d: int, dtype: torch.dtype, per_step: bool) -> Cost:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code(launch, GPUTarget("cuda", target, 32)))
        file.flush()
        (kernel,) = read_cubin(Path(file.name))
    rows, steps, warps = (launch.arguments[name] for name in ("ROWS", "STEPS", "num_warps"))
    counted = [i for i in kernel.instructions if i.opcode != "NOP"]
    return Cost(
        target,
        launch.kernel.__name__,
        d,
        "step" if per_step else "row",
        str(dtype).removeprefix("torch."),
        f"{rows}x{steps}",
        warps,
        kernel.registers,
        kernel.stack,
        kernel.spills,
        round(len(counted) * 32 * warps / (rows * steps), 1),
    )


def costs(options: argparse.Namespace) -> Iterator[Cost]:
    for target, name, d, parameters in product(
        options.targets, options.dtypes, options.lengths, options.parameters
    ):
        dtype, per_step = getattr(torch, name), parameters == "step"
        for launch in launches(d, dtype, per_step):
            yield cost(launch, target, d, dtype, per_step)


def main() -> None:
    parser = argparse.ArgumentParser(description="machine code of the Triton kernels, without a GPU")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="d (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of mu (default: %(default)s)")
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS, help="sm_ (default: %(default)s)")
    parser.add_argument(
        "--parameters",
        nargs="+",
        choices=("row", "step"),
        default=("row", "step"),
        help="s and rho per row, per step",
    )
    options = parser.parse_args()
    if not options.json:
        print("| target | kernel | type | d | s, rho | tile | warps | regs | spills | instr/element | CUDA |")
        print("|---|---|---|--:|---|---|--:|--:|--:|--:|--:|")
    for c in costs(options):
        if options.json:
            print(json.dumps(asdict(c)), flush=True)
            continue
        alike = (c.target, c.d, c.parameters, c.dtype) == (90, 256, "row", "float32")
        budget = CUDA.get(c.kernel, "") if alike else ""
        print(
            f"| sm_{c.target} | {c.kernel} | {c.dtype} | {c.d} | {c.parameters} | {c.tile} | {c.warps} "
            f"| {c.registers} | {c.spills} | {c.instructions_per_element} | {budget} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
