"""Times ar1_reparam_kl against what a user would run in its place."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench import hardware, memory, report
from bench.memory import BOTH, FORWARD, Extra
from bench.peers import Peer, output_gradients, peers
from bench.report import Result
from bench.timing import cpu_timer, interleaved, keep_freed_memory
from bench.verify import refuse_if_wrong

SIZES = [(128, 10), (128, 128), (1024, 64), (8192, 256), (65536, 256), (1, 1_000_000)]
QUICK_SIZES = [(128, 10), (1024, 64), (8192, 256)]
RESULTS = Path(__file__).parent / "results"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three sizes, no torch.compile, some seconds, no files"
    )
    parser.add_argument(
        "--backend", default="native", help="the library's backend to time (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[torch.get_num_threads()],
        help="thread counts (default: all cores)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON, Markdown and plot (default: bench/results)"
    )
    return parser.parse_args(argv)


def moved_bytes(peer: Peer, direction: str, gradients: tuple[Tensor, ...]) -> int:
    """Every input read once and every result written once, in each of the two passes."""
    read = sum(tensor.nbytes for tensor in peer.reads)
    total = read + sum(tensor.nbytes for tensor in peer.forward())
    if direction == BOTH:
        total += 2 * read + sum(tensor.nbytes for tensor in gradients)
    return total


def measure(
    rows: int, d: int, threads: int, options: argparse.Namespace, extra: dict[tuple[str, str], Extra]
) -> list[Result]:
    device = torch.device("cpu")
    torch.set_num_threads(threads)
    competitors = peers(rows, d, device=device, backend=options.backend, compiled=not options.quick)
    gradients = output_gradients(rows, d, device)
    budget, rounds = (0.2, 15) if options.quick else (2.0, 60)
    results = []
    for direction in (FORWARD, BOTH):
        taking_part = {p.name: p for p in competitors if direction == FORWARD or p.differentiable}
        calls = {
            name: p.forward if direction == FORWARD else partial(p.forward_backward, gradients)
            for name, p in taking_part.items()
        }
        times = interleaved(calls, cpu_timer, budget=budget, rounds=rounds)
        for name, peer in taking_part.items():
            results.append(
                Result(
                    peer=name,
                    rows=rows,
                    d=d,
                    direction=direction,
                    threads=threads,
                    seconds=times[name],
                    bytes_per_element=moved_bytes(peer, direction, gradients) / (rows * d),
                    extra=extra[name, direction],
                )
            )
    return results


def main() -> None:
    options = arguments()
    refuse_if_wrong(options.backend)
    machine = hardware.describe() | {"freed_memory_kept": keep_freed_memory()}
    results: list[Result] = []
    sizes = QUICK_SIZES if options.quick else SIZES
    extra = {}
    for rows, d in sizes:
        print(f"{rows} x {d}: memory ...", file=sys.stderr, flush=True)
        extra[rows, d] = memory.in_child(rows, d, options.backend, compiled=not options.quick)
    for threads in options.threads:
        for rows, d in sizes:
            print(f"{rows} x {d}: time, {threads} threads ...", file=sys.stderr, flush=True)
            results += measure(rows, d, threads, options, extra[rows, d])
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    print(report.markdown(results, machine, command, whole=not options.quick))
    if options.out or not options.quick:
        stem = report.unused_stem(
            options.out or RESULTS, f"{hardware.host_class(machine)}-{date.today().isoformat()}"
        )
        for path in report.write(results, machine, command, stem):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
