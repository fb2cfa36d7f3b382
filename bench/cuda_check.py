"""Reads the machine code of a built CUDA extension: no GPU is needed, and none is used.

Fails on a spill, on a missing 16-byte access, on double precision in a float32 kernel, and on a budget
passed: instructions an element in the loop over a row that is a warp's and has one scale and one rho.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.cuda_sass import KINDS, Kernel, Needs, RowCost, read_cubin, row_cost, tool

BUDGET = {
    "plain_forward_kernel<float, WarpTeam<32> >": 32.0,
    "plain_backward_kernel<float, WarpTeam<32> >": 40.0,
}
ITEMS = {"float": 4, "double": 2, "BFloat16": 8, "Float16": 8}  # elements of a thread's run: 16 bytes
SIZES = {"float": 4, "double": 8, "BFloat16": 2, "Float16": 2}

# An H200: multiprocessors, clock in Hz, bytes a second of a copy; four schedulers issue a warp each a clock.
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.98e9, 4.3e12
LANES_PER_CLOCK = 4 * 32
STEPS = 256  # of the row that the times are predicted for


@dataclass(frozen=True)
class Reading:
    """What one kernel's code says for one architecture."""

    architecture: str
    kernel: Kernel

    @property
    def name(self) -> str:
        return self.kernel.name.removeprefix("void ").split("(")[0]

    @property
    def element(self) -> str:
        found = re.search(r"<(\w+)", self.name)
        return found[1] if found else ""

    def needs(self) -> Needs:
        """One tile of a plain row: noise of a thread's run, scans, mu or dz and mu in, z or dmu out."""
        backward = "backward" in self.name
        words = 2 if self.element == "double" else 1  # registers that a value takes, one a shuffle
        needs: Needs = (
            ("LDG.E.128", 1 + backward),
            ("STG.E.128", 1),
            ("SHFL", 6 * words * (1 + backward)),
        )
        if self.element == "double":
            return needs
        pairs = ITEMS[self.element] // 2
        return (*needs, ("MUFU.LG2", pairs), ("MUFU.SQRT", pairs), ("MUFU.SIN", pairs), ("MUFU.COS", pairs))

    @cached_property
    def cost(self) -> RowCost | None:
        if "plain" not in self.name:
            return None
        results = 2 if "backward" in self.name else 1
        return row_cost(self.kernel, self.needs(), (("STG", results),))

    def per_element(self, cost: RowCost) -> float:
        """Instructions an element in the loop over a row."""
        return len(cost.tile) / ITEMS[self.element]

    def whole_row(self, cost: RowCost) -> float:
        """The same with what a warp spends beside the loop, for a row of STEPS."""
        return self.per_element(cost) + len(cost.beside) * 32 / STEPS

    def faults(self) -> list[str]:
        found = []
        kernel = self.kernel
        if kernel.spills or kernel.stack:
            found.append(f"{kernel.spills} spilling instructions, {kernel.stack} bytes of stack")
        if self.element in ITEMS and "sum_kernel" not in self.name:
            loads_in_runs = "row_noise" not in self.name  # it reads keys, which may lie anywhere
            if loads_in_runs and not kernel.count("LDG.E.128"):
                found.append("no 16-byte load")
            per_step_results = "reduce" not in self.name and "log_prob_kernel" not in self.name
            if per_step_results and not kernel.count("STG.E.128"):
                found.append("no 16-byte store")
        if self.element != "double" and kernel.doubles:
            found.append(f"double precision: {', '.join(sorted(set(kernel.doubles)))}")
        if self.name in BUDGET:
            cost = self.cost
            if cost is None:
                found.append("its loop over a row was not recognised in the machine code")
            elif self.per_element(cost) > BUDGET[self.name]:
                found.append(
                    f"{self.per_element(cost)} instructions an element, the budget is {BUDGET[self.name]}"
                )
        return [f"sm_{self.architecture} {self.name}: {fault}" for fault in found]


def read(module: Path) -> list[Reading]:
    """Every kernel of every architecture in a compiled module."""
    readings = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [tool("cuobjdump"), "-xelf", "all", module.resolve()], cwd=folder, check=True, capture_output=True
        )
        for cubin in sorted(Path(folder).glob("*.cubin")):
            architecture = re.search(r"sm_(\d+)", cubin.name)
            if architecture:
                kernels = read_cubin(cubin)
                readings += [Reading(architecture[1], kernel) for kernel in kernels]
    return sorted(readings, key=lambda reading: (int(reading.architecture), reading.name))


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def resources(readings: list[Reading]) -> list[str]:
    architectures = list(dict.fromkeys(reading.architecture for reading in readings))
    found = {(r.name, r.architecture): r.kernel for r in readings}
    heads = [f"sm_{a}" for a in architectures]
    lines = [_row(["registers / spills / shared bytes", *heads]), "|---" * (len(heads) + 1) + "|"]
    for name in sorted({reading.name for reading in readings}):
        kernels = [found.get((name, a)) for a in architectures]
        cells = [f"{k.registers} / {k.spills} / {k.shared}" if k else "-" for k in kernels]
        lines.append(_row([f"`{name}`", *cells]))
    return lines


def costs(readings: list[Reading]) -> list[str]:
    kinds = [*KINDS, "integer and logic"]
    head = [
        "instructions an element, row of a warp",
        "sm",
        "in the loop",
        "budget",
        *kinds,
        f"whole row of {STEPS}",
    ]
    lines = [_row(head), "|---" * len(head) + "|"]
    for r in readings:
        cost = r.cost
        if cost is None:
            continue
        counted = cost.kinds
        by_kind = [f"{counted[kind] / ITEMS[r.element]:.2f}" for kind in kinds]
        lines.append(
            _row(
                [
                    f"`{r.name}`",
                    r.architecture,
                    f"{r.per_element(cost):.2f}",
                    BUDGET.get(r.name, "-"),
                    *by_kind,
                    f"{r.whole_row(cost):.1f}",
                ]
            )
        )
    return lines


def predictions(readings: list[Reading]) -> list[str]:
    head = [
        "H200, ps an element, rows of " + str(STEPS),
        "bytes moved",
        "at copy speed",
        "to issue",
        "bound by",
    ]
    lines = [_row(head), "|---" * len(head) + "|"]
    for r in readings:
        cost = r.cost if r.architecture == "90" and "WarpTeam<32>" in r.name else None
        if cost is None:
            continue
        moved = (3 if "backward" in r.name else 2) * SIZES[r.element]
        issue = 1e12 * r.whole_row(cost) / (MULTIPROCESSORS * LANES_PER_CLOCK * CLOCK)
        floor = 1e12 * moved / BANDWIDTH
        bound = "memory" if floor >= issue else "instructions"
        lines.append(_row([f"`{r.name}`", moved, f"{floor:.2f}", f"{issue:.2f}", bound]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_check", description=__doc__)
    parser.add_argument("module", type=Path, help="the compiled module, rhovae_ext/_C*.so")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to as well")
    options = parser.parse_args()
    readings = read(options.module)
    if not readings:
        raise SystemExit(f"cuda_check: {options.module} has no CUDA machine code. Run: make cuda-check")
    text = "\n".join(
        [
            "# What the CUDA kernels cost, read from their machine code",
            "",
            "From `make cuda-check`. Nothing was measured on a GPU: the times are what the counts predict.",
            "",
            *costs(readings),
            "",
            *predictions(readings),
            "",
            *resources(readings),
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text)
    faults = [fault for reading in readings for fault in reading.faults()]
    if faults:
        sys.exit("cuda_check:\n  " + "\n  ".join(faults))
    architectures = ", ".join(f"sm_{a}" for a in dict.fromkeys(r.architecture for r in readings))
    print(f"cuda_check: {len(readings)} kernels of {architectures} within their budgets")


if __name__ == "__main__":
    main()
