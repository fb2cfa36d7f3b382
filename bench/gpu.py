"""Times ar1_reparam_kl on a GPU against what a user would run in its place.

Times are CUDA events' around enough calls for the clock; the calls go in turn over sets of tensors that
together are larger than the L2 cache.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rhovae_ext
from bench import hardware
from bench.memory import BOTH, FORWARD
from bench.peers import COPY, DIAGONAL, KERNEL, Peer, diagonal, output_gradients, peers
from bench.report import save, unused_stem
from bench.timing import Call, Quantiles, interleaved

Outputs = Callable[[], tuple[Tensor, ...]]

SIZES = [
    (128, 10),
    (128, 128),
    (8192, 64),
    (8192, 256),
    (65536, 256),
    (1_048_576, 256),
    (64, 65536),
    (1, 1_000_000),
]
COMPILED_SIZES = [(128, 10), (8192, 256), (65536, 256)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPILED, AT_ZERO, TRITON = "diagonal, torch.compile", f"{KERNEL} at rho = 0", f"{KERNEL}, Triton"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One peer, at one size and type, in one direction."""

    peer: str
    rows: int
    d: int
    dtype: str
    direction: str
    seconds: Quantiles
    bytes_per_element: float  # read once and written once: the least this peer can move
    extra_bytes_per_element: float  # allocated beyond what is returned, at the worst moment

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.d}"

    @property
    def picoseconds(self) -> float:
        return self.seconds.q50 * 1e12 / (self.rows * self.d)

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_per_element * self.rows * self.d / self.seconds.q50 / 1e9


def cuda_timer(call: Call, number: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def in_turn(calls: list[Outputs]) -> Call:
    """The calls one after the other, one at a time, over and over."""
    turn = count()
    return lambda: calls[next(turn) % len(calls)]()


def sets_of_peers(rows: int, d: int, dtype: torch.dtype, backend: str) -> list[list[Peer]]:
    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = max(1, min(32, -(-2 * cache // (rows * d * dtype.itemsize))))
    found = [peers(rows, d, device=device, backend=backend, compiled=False, dtype=dtype) for _ in range(sets)]
    if backend != "triton" and rhovae_ext.available_backends(device)["triton"] is None:
        for some in found:
            reads = next(peer.reads for peer in some if peer.name == KERNEL)
            call = partial(rhovae_ext.ar1_reparam_kl_with_logits, *reads, backend="triton")
            some.append(Peer(TRITON, call, reads))
    if (rows, d) in COMPILED_SIZES:
        torch.compiler.reset()
        fused = torch.compile(diagonal, dynamic=False, fullgraph=True)
        for some in found:
            reads = next(peer.reads for peer in some if peer.name == DIAGONAL)
            some.append(Peer(COMPILED, partial(fused, *reads), reads))
    return found


def extra_bytes(call: Outputs) -> int:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(tensor.nbytes for tensor in outputs)


def measure(rows: int, d: int, name: str, backend: str, budget: float) -> list[Result]:
    sets = sets_of_peers(rows, d, DTYPES[name], backend)
    gradients = output_gradients(rows, d, torch.device("cuda"))

    def call_of(peer: Peer, direction: str) -> Outputs:
        if direction == FORWARD:
            return peer.forward
        given = zip(gradients, peer.forward(), strict=True)
        return partial(peer.forward_backward, tuple(g.to(output.dtype) for g, output in given))

    results = []
    for direction in (FORWARD, BOTH):
        taking_part = [i for i, p in enumerate(sets[0]) if direction == FORWARD or p.differentiable]
        calls = {sets[0][i].name: [call_of(some[i], direction) for some in sets] for i in taking_part}
        extra = {peer: extra_bytes(turns[0]) for peer, turns in calls.items()}
        times = interleaved(
            {peer: in_turn(turns) for peer, turns in calls.items()}, cuda_timer, budget=budget, rounds=25
        )
        for i in taking_part:
            peer = sets[0][i]
            outputs = peer.forward()
            read, written = (sum(t.nbytes for t in some) for some in (peer.reads, outputs))
            moved = read + written
            if direction == BOTH:  # the gradients of the outputs and the inputs in, those of the inputs out
                moved += written + 2 * read
            results.append(
                Result(
                    peer=peer.name,
                    rows=rows,
                    d=d,
                    dtype=name,
                    direction=direction,
                    seconds=times[peer.name],
                    bytes_per_element=moved / (rows * d),
                    extra_bytes_per_element=extra[peer.name] / (rows * d),
                )
            )
    return results


def targets(results: list[Result]) -> list[str]:
    """Each promise beside what was reached."""
    found = {(r.peer, r.size, r.dtype, r.direction): r for r in results}
    large, small = "65536 x 256", "128 x 10"

    def ratio(peer: str, size: str, direction: str) -> float:
        this, that = (found.get((name, size, "float32", direction)) for name in (peer, KERNEL))
        return this.seconds.q50 / that.seconds.q50 if this and that else float("nan")

    copy = found.get((COPY, large, "float32", FORWARD))
    kernel = found.get((KERNEL, large, "float32", FORWARD))
    share = kernel.gigabytes_per_second / copy.gigabytes_per_second if copy and kernel else float("nan")
    extra = max(
        (r.extra_bytes_per_element for r in results if r.peer == KERNEL and r.size == large), default=0.0
    )
    both = "forward + backward + KL"
    rows = [
        (f"forward + KL, {large}, share of the copy's bandwidth", f"{share:.2f}", ">= 0.85"),
        (f"{both}, {large}, eager diagonal / kernel", f"{ratio(DIAGONAL, large, BOTH):.2f}", ">= 5"),
        (f"{both}, {large}, compiled diagonal / kernel", f"{ratio(COMPILED, large, BOTH):.2f}", ">= 1.5"),
        (f"{both}, {small}, eager diagonal / kernel", f"{ratio(DIAGONAL, small, BOTH):.2f}", ">= 4"),
        (
            f"forward + KL, {large}, kernel / at rho = 0",
            f"{1 / ratio(AT_ZERO, large, FORWARD):.2f}",
            "<= 1.1",
        ),
        (f"extra bytes an element, {large}", f"{extra:.2f}", "0"),
        (f"forward + KL, {large}, Triton / kernel", f"{ratio(TRITON, large, FORWARD):.2f}", "<= 1.25"),
        (f"{both}, {large}, Triton / kernel", f"{ratio(TRITON, large, BOTH):.2f}", "<= 1.25"),
    ]
    lines = ["| | reached | wanted |", "|---|--:|--:|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def tables(results: list[Result]) -> list[str]:
    lines: list[str] = []
    for name in dict.fromkeys(r.dtype for r in results):
        for direction in (FORWARD, BOTH):
            some = [r for r in results if r.dtype == name and r.direction == direction]
            sizes = list(dict.fromkeys(r.size for r in some))
            cells = {
                (r.peer, r.size): f"{r.picoseconds:.3g} "
                f"({r.seconds.q20 / r.seconds.q50:.2f}-{r.seconds.q80 / r.seconds.q50:.2f}; "
                f"{r.gigabytes_per_second:.0f})"
                for r in some
            }
            lines += ["", f"### {name}, {direction}: ps an element (20% and 80% over the median; GB/s)", ""]
            lines += [f"| | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
            for peer in dict.fromkeys(r.peer for r in some):
                lines.append(f"| {peer} | {' | '.join(cells.get((peer, s), '-') for s in sizes)} |")
    return lines


def plot(results: list[Result], title: str, path: Path) -> None:
    """Time per element against size in float32, one line a peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
    for panel, direction in zip(panels, (FORWARD, BOTH), strict=True):
        some = [r for r in results if r.dtype == "float32" and r.direction == direction]
        sizes = list(dict.fromkeys(r.size for r in some))
        for peer in dict.fromkeys(r.peer for r in some):
            line = [r for r in some if r.peer == peer]
            at = [sizes.index(r.size) for r in line]
            panel.plot(at, [r.picoseconds for r in line], marker="o", label=peer)
        panel.set(yscale="log", title=direction.capitalize())
        panel.set_xticks(range(len(sizes)), sizes, rotation=30)
        panel.grid(axis="y", which="both", alpha=0.25)
    panels[0].set_ylabel("ps per element")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{title}, float32")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **hardware.describe(),
    }


def write(
    stem: Path, results: list[Result], machine: dict[str, Any], steps: list[dict[str, Any]], command: str
) -> list[Path]:
    """JSON, Markdown and a picture."""
    paths = [stem.with_name(stem.name + suffix) for suffix in (".json", ".md", ".png")]
    rates = [
        {"picoseconds_per_element": r.picoseconds, "gigabytes_per_second": r.gigabytes_per_second}
        for r in results
    ]
    record = {
        "command": command,
        "hardware": machine,
        "steps": steps,
        "results": [{**asdict(r), **rate} for r, rate in zip(results, rates, strict=True)],
    }
    lines = [
        f"# {machine['gpu']}",
        "",
        f"torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}; `{command}`. Medians "
        "of interleaved repetitions timed by CUDA events; inputs in turn, together more than the L2 holds.",
        "",
        *(f"- {step['name']}: {step['outcome']} ({step['seconds']:.0f} s)" for step in steps),
        "",
        *targets(results),
        *tables(results),
        "",
        f"![time per element]({paths[2].name})",
        "",
    ]
    save(stem, "\n".join(lines), record)
    plot(results, str(machine["gpu"]), paths[2])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--backend", default="native", help="the library's backend to time")
    parser.add_argument("--steps", type=Path, help="JSON of what a report did before, to be told with it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--budget", type=float, default=0.5, help="seconds for each peer at each size (default: %(default)s)"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "bench.gpu: torch sees no GPU. Run it on a machine with one; `rhovae doctor` says more."
        )
    machine = describe_gpu()
    steps = json.loads(options.steps.read_text()) if options.steps else []
    label = "-".join(machine["gpu"].lower().split())
    stem = unused_stem(options.out, f"{label}-{date.today().isoformat()}")
    command = shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]])
    results: list[Result] = []
    paths: list[Path] = []
    for name in DTYPES:
        for rows, d in SIZES:
            print(f"{name}, {rows} x {d} ...", file=sys.stderr, flush=True)
            results += measure(rows, d, name, options.backend, options.budget)
            # After every size: a benchmark that is cut off has still been one.
            paths = write(stem, results, machine, steps, command)
    for path in paths:
        print(f"wrote {path}")
    print(stem.with_name(stem.name + ".md").read_text())


if __name__ == "__main__":
    main()
