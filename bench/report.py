"""Results as JSON, as Markdown and as a picture. An existing file is never overwritten."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.memory import BOTH, FORWARD, Extra
from bench.peers import DIAGONAL, KERNEL
from bench.timing import Quantiles

BUSY = 0.7  # waiting programs, on average over the last minute
PREAMBLE = """\
float32; sizes are rows x d; medians of interleaved repetitions with their 20% and 80% quantiles. Every
sampler returns z and, for each row, its KL to N(0, I). The diagonal ones have one variance per element, the
correlated ones one scale and one rho per row. Bytes: inputs read once and results written once, in each
pass. Extra bytes: allocated beyond what is returned, at the worst moment, as the tensor allocator tells (and
as the process's pages tell, for large tensors).
"""


@dataclass(frozen=True)
class Result:
    """One peer, at one size, in one direction."""

    peer: str
    rows: int
    d: int
    direction: str
    threads: int
    seconds: Quantiles
    bytes_per_element: float  # read once and written once: the least this peer can move
    extra: Extra  # bytes allocated beyond what is returned, at the worst moment

    @property
    def elements(self) -> int:
        return self.rows * self.d

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.d}"

    def as_json(self) -> dict[str, Any]:
        nanoseconds = self.seconds.q50 * 1e9 / self.elements
        return {
            **asdict(self),
            "extra": self.extra._asdict(),
            "ns_per_element": nanoseconds,
            "gigabytes_per_second": self.bytes_per_element / nanoseconds,
        }


def _ns(result: Result) -> str:
    low, middle, high = (
        seconds * 1e9 / result.elements
        for seconds in (result.seconds.q20, result.seconds.q50, result.seconds.q80)
    )
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def _extra(result: Result) -> str:
    pages = "" if result.extra.pages is None else f" ({result.extra.pages / result.elements:.2f})"
    return f"{result.extra.tensors / result.elements:.2f}{pages}"


def _grid(results: list[Result], title: str, cell: dict[tuple[str, str], str]) -> list[str]:
    sizes = list(dict.fromkeys(result.size for result in results))
    names = list(dict.fromkeys(result.peer for result in results))
    lines = [f"| {title} | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(cell.get((name, size), '-') for size in sizes)} |")
    return [*lines, ""]


def headline(results: list[Result]) -> list[str]:
    """One sentence for each size: the kernel against the ordinary diagonal posterior."""
    found = {(r.size, r.threads, r.direction, r.peer): r for r in results}
    lines = []
    for size, threads in dict.fromkeys((r.size, r.threads) for r in results):
        parts = []
        for direction in (FORWARD, BOTH):
            kernel, eager = (found[size, threads, direction, peer] for peer in (KERNEL, DIAGONAL))
            ratio = eager.seconds.q50 / kernel.seconds.q50
            extra = kernel.extra.tensors / kernel.elements
            parts.append(
                f"{direction} {_ns(kernel)} ns per element, {ratio:.2g} times as fast as the eager diagonal, "
                f"{extra:.2f} extra bytes per element"
            )
        lines.append(f"- {size}, {threads_of(threads)}: {'; '.join(parts)}")
    return [*lines, ""]


def _tables(results: list[Result], *, whole: bool) -> list[str]:
    lines: list[str] = []
    for direction in (FORWARD, BOTH):
        some = [result for result in results if result.direction == direction]
        kernel = {result.size: result.seconds.q50 for result in some if result.peer == KERNEL}
        lines += [f"### {direction.capitalize()}", ""]
        lines += _grid(some, "ns per element", {(r.peer, r.size): _ns(r) for r in some})
        ratio = {(r.peer, r.size): f"{r.seconds.q50 / kernel[r.size]:.3g}" for r in some}
        lines += _grid(some, f"time / time of {KERNEL}", ratio)
        if not whole:
            continue
        moved = {
            (r.peer, r.size): f"{r.bytes_per_element:.3g} ({r.as_json()['gigabytes_per_second']:.3g})"
            for r in some
        }
        lines += _grid(some, "bytes per element (GB/s)", moved)
        extra = {(r.peer, r.size): _extra(r) for r in some}
        lines += _grid(some, "extra bytes per element (by pages)", extra)
    return lines


def threads_of(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def provenance(hardware: dict[str, Any], command: str) -> list[str]:
    """Machine, versions and command; and a word where the machine was busy."""
    machine = "{cpu}, {cores} cores, {instruction_set}, {memory_gib} GiB; {system}".format(**hardware)
    versions = "Python {python}, torch {torch}, rhovae-ext {rhovae_ext}".format(**hardware)
    lines = [
        f"{machine}; {versions}; load before the run {hardware['load_before'][0]}. Command: `{command}`."
    ]
    if hardware.get("freed_memory_kept"):
        lines[0] += " Memory that tensors free stays with the process, for every sampler alike."
    if hardware["load_before"][0] > BUSY:
        lines += ["", "**Other programs were running: these times are too long, the ratios unsure.**"]
    return lines


def markdown(results: list[Result], hardware: dict[str, Any], command: str, *, whole: bool = True) -> str:
    """The report; without `whole` only times and ratios."""
    lines = ["# Benchmark", "", *provenance(hardware, command), "", PREAMBLE]
    for threads in dict.fromkeys(result.threads for result in results):
        lines += [f"## {threads_of(threads)}", ""]
        lines += _tables([result for result in results if result.threads == threads], whole=whole)
    return "\n".join(lines + headline(results))


def plot(results: list[Result], title: str, path: Path) -> None:
    """Time per element against size, one line a peer, bars from the 20% to the 80% quantile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = results[0].threads
    results = [result for result in results if result.threads == threads]
    sizes = list(dict.fromkeys(result.size for result in results))
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
    names = list(dict.fromkeys(result.peer for result in results))
    for panel, direction in zip(panels, (FORWARD, BOTH), strict=True):
        for colour, name in enumerate(names):
            line = [r for r in results if r.peer == name and r.direction == direction]
            if not line:
                continue
            middle = [r.seconds.q50 * 1e9 / r.elements for r in line]
            below = [(r.seconds.q50 - r.seconds.q20) * 1e9 / r.elements for r in line]
            above = [(r.seconds.q80 - r.seconds.q50) * 1e9 / r.elements for r in line]
            panel.errorbar(
                [sizes.index(r.size) for r in line],
                middle,
                yerr=[below, above],
                label=name,
                color=f"C{colour}",
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=2.5 if name == KERNEL else 1.2,
                linestyle="--"
                if line[0].direction == FORWARD and name.startswith(("noise", "copy"))
                else "-",
            )
        panel.set_xticks(range(len(sizes)), sizes, rotation=20)
        panel.set_yscale("log")
        panel.set_title(direction.capitalize())
        panel.grid(axis="y", which="both", alpha=0.25)
    panels[0].set_ylabel("ns per element")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{title}, {threads_of(threads)}, float32")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def unused_stem(folder: Path, stem: str) -> Path:
    """`stem`, or `stem-2`, `stem-3`, ... if files of that name are there."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        if not any(path.with_name(path.name + suffix).exists() for suffix in (".json", ".md", ".png")):
            return path
        number += 1


def save(stem: Path, text: str, record: dict[str, Any]) -> None:
    """The figures as JSON and what they say as Markdown, beside each other."""
    stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_name(stem.name + ".md").write_text(text)


def write(results: list[Result], hardware: dict[str, Any], command: str, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md", ".png")]
    record = {"command": command, "hardware": hardware, "results": [result.as_json() for result in results]}
    text = markdown(results, hardware, command) + f"\n![time per element]({paths[2].name})\n"
    save(stem, text, record)
    plot(results, f"{hardware['cpu']}, {hardware['instruction_set']}", paths[2])
    return paths
