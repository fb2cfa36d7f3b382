"""Time per element of the fused kernel over the length of a row and over the batch, for every type.

python -m bench.sweep                   threads 1 and all cores, every type; writes JSON, Markdown and a plot
python -m bench.sweep --quick           float32 alone, fewer lengths, no files
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rhovae_ext
from bench import hardware, report
from bench.memory import BOTH, FORWARD
from bench.timing import Quantiles, cpu_timer, interleaved, keep_freed_memory
from bench.verify import refuse_if_wrong

ELEMENTS = 2**21
LENGTHS = (8, 10, 16, 32, 64, 65, 127, 128, 129, 256, 512, 1024, 4096, 16384, 131_072, 1_000_000)
QUICK_LENGTHS = (8, 32, 65, 129, 256, 4096, 1_000_000)
BATCHES = tuple((rows, d) for d in (10, 256) for rows in (1, 16, 128, 1024, 8192))
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NOISE, COPY = "noise alone", "copy of mu"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Point:
    """One call at one size: medians and quantiles of seconds."""

    work: str
    dtype: str
    rows: int
    d: int
    threads: int
    seconds: Quantiles

    @property
    def nanoseconds(self) -> float:
        """Per element."""
        return self.seconds.q50 * 1e9 / (self.rows * self.d)


def calls(rows: int, d: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The kernel with one scale and one rho per row and the KL, forward and both ways; its noise; a copy."""
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(rows, d, generator=generator).to(dtype).requires_grad_()
    log_s, rho_logit = (
        (0.5 * torch.randn(rows, generator=generator)).to(dtype).requires_grad_() for _ in range(2)
    )
    dz = torch.randn(rows, d, generator=generator).to(dtype)
    kernel = partial(rhovae_ext.ar1_reparam_kl_with_logits, mu, log_s, rho_logit, backend="native")
    dkl = torch.full((rows,), 1.0 / rows, dtype=kernel()[1].dtype)

    def forward() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return kernel()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernel(), (mu, log_s, rho_logit), (dz, dkl))

    plain = mu.detach()
    noise = partial(rhovae_ext.ar1_reparam, plain, 1.0, 0.0, backend="native")
    return {FORWARD: forward, BOTH: both, NOISE: noise, COPY: plain.clone}


def measure(rows: int, d: int, dtype: torch.dtype, threads: int, *, quick: bool = False) -> list[Point]:
    torch.set_num_threads(threads)
    budget, rounds = (0.1, 9) if quick else (0.3, 25)
    times = interleaved(calls(rows, d, dtype), cpu_timer, budget=budget, rounds=rounds)
    name = str(dtype).removeprefix("torch.")
    return [Point(work, name, rows, d, threads, seconds) for work, seconds in times.items()]


def sizes(quick: bool) -> list[tuple[int, int]]:
    lengths = [(max(1, ELEMENTS // d), d) for d in (QUICK_LENGTHS if quick else LENGTHS)]
    return lengths if quick else [*lengths, *BATCHES]


def markdown(points: list[Point], machine: dict[str, Any], command: str) -> str:
    works = list(dict.fromkeys(point.work for point in points))
    lines = ["# Sweep", "", *report.provenance(machine, command), ""]
    lines += [f"Nanoseconds per element, medians of interleaved repetitions: {', '.join(works)}.", ""]
    for threads in dict.fromkeys(point.threads for point in points):
        here = [point for point in points if point.threads == threads]
        types = list(dict.fromkeys(point.dtype for point in here))
        lines += [f"## {report.threads_of(threads)}", "", f"| rows x d | {' | '.join(types)} |"]
        lines += ["|---" * (len(types) + 1) + "|"]
        for rows, d in dict.fromkeys((point.rows, point.d) for point in here):
            cells = {(p.dtype, p.work): f"{p.nanoseconds:.3g}" for p in here if (p.rows, p.d) == (rows, d)}
            row = (", ".join(cells[dtype, work] for work in works) for dtype in types)
            lines.append(f"| {rows} x {d} | {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines)


def plot(points: list[Point], title: str, path: Path) -> None:
    """Time per element against d, a column a thread count; noise and copy dashed, in float32."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = list(dict.fromkeys(point.threads for point in points))
    lengths = set(sizes(False)) - set(BATCHES)
    figure, grid = pyplot.subplots(
        2,
        len(threads),
        figsize=(6.5 * len(threads), 9),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for column, count in enumerate(threads):
        for panel, work in zip(grid[:, column], (FORWARD, BOTH), strict=True):
            here = [p for p in points if p.threads == count and (p.rows, p.d) in lengths]
            lines = [(work, dtype, dtype, "-") for dtype in dict.fromkeys(p.dtype for p in here)]
            lines += [(other, "float32", f"{other}, float32", "--") for other in (NOISE, COPY)]
            for name, dtype, label, style in lines:
                line = [p for p in here if p.work == name and p.dtype == dtype]
                panel.plot(
                    [p.d for p in line],
                    [p.nanoseconds for p in line],
                    style,
                    marker="o",
                    markersize=3,
                    label=label,
                )
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_title(f"{work.capitalize()}, {report.threads_of(count)}")
            panel.grid(which="both", alpha=0.25)
            panel.set_ylabel("ns per element")
        grid[-1, column].set_xlabel(f"d, at {ELEMENTS} elements")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="float32, few lengths, some seconds, no files")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    options = parser.parse_args()
    refuse_if_wrong("native")
    machine = hardware.describe() | {"freed_memory_kept": keep_freed_memory()}
    points: list[Point] = []
    for threads in options.threads:
        for dtype in TYPES[: 1 if options.quick else None]:
            print(f"{dtype}, {report.threads_of(threads)} ...", file=sys.stderr, flush=True)
            for rows, d in sizes(options.quick):
                points += measure(rows, d, dtype, threads, quick=options.quick)
    command = shlex.join(["python", "-m", "bench.sweep", *sys.argv[1:]])
    text = markdown(points, machine, command)
    print(text)
    if options.quick:
        return
    stem = report.unused_stem(RESULTS, f"sweep-{hardware.host_class(machine)}-{date.today().isoformat()}")
    record = {"command": command, "hardware": machine, "points": [asdict(point) for point in points]}
    picture = stem.with_name(stem.name + ".png")
    report.save(stem, f"{text}\n![time per element]({picture.name})\n", record)
    plot(points, f"{machine['cpu']}, {machine['instruction_set']}", picture)
    print(f"wrote {stem}.json, .md, .png")


if __name__ == "__main__":
    main()
