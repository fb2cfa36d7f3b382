"""What the CPU kernel is meant to reach, each a ratio taken in one run, with what it reached beside it.

python -m bench.targets            the table; writes it beside the other results
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial

import torch

from bench import hardware, memory, report, sweep
from bench.memory import BOTH, FORWARD
from bench.peers import DIAGONAL, KERNEL, LOOP, output_gradients, peers
from bench.timing import Call, Quantiles, cpu_timer, interleaved, keep_freed_memory
from bench.verify import refuse_if_wrong

WIDE, LONG = (8192, 256), (1, 1_000_000)


@dataclass(frozen=True)
class Target:
    """A ratio of two times, or of bytes, and its bound: `least` for a gain, `most` for a cost."""

    work: str
    against: str
    bound: float
    reached: float
    at_best: float  # the same from the quickest samples, which other programs disturb least
    gain: bool

    @property
    def met(self) -> bool:
        return self.reached >= self.bound if self.gain else self.reached <= self.bound


def _gain(work: str, against: str, least: float, slow: Quantiles, quick: Quantiles) -> Target:
    return Target(work, against, least, slow.q50 / quick.q50, slow.least / quick.least, True)


def _cost(work: str, against: str, most: float, ours: Quantiles, other: Quantiles) -> Target:
    return Target(work, against, most, ours.q50 / other.q50, ours.least / other.least, False)


def _peer_times(
    size: tuple[int, int], direction: str, names: tuple[str, ...], threads: int, budget: float
) -> dict[str, Quantiles]:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    gradients = output_gradients(*size, device)
    found = {peer.name: peer for peer in peers(*size, device=device, backend="native", compiled=False)}
    calls: dict[str, Call] = {
        name: found[name].forward
        if direction == FORWARD
        else partial(found[name].forward_backward, gradients)
        for name in names
    }
    return interleaved(calls, cpu_timer, budget=budget, rounds=100)


def _on_threads(threads: int, call: Callable[[], object]) -> object:
    torch.set_num_threads(threads)
    return call()


def against_peers(threads: int, budget: float) -> list[Target]:
    name = report.threads_of(threads)
    uncorrelated = f"{KERNEL} at rho = 0"
    wide = _peer_times(WIDE, FORWARD, (KERNEL, DIAGONAL, uncorrelated), threads, budget)
    wide_both = _peer_times(WIDE, BOTH, (KERNEL, DIAGONAL), threads, budget)
    small = _peer_times((128, 10), BOTH, (KERNEL, DIAGONAL), threads, budget)
    loop = _peer_times((128, 128), BOTH, (KERNEL, LOOP), threads, budget)
    return [
        _gain(f"forward + KL, 8192 x 256, {name}", DIAGONAL, 8, wide[DIAGONAL], wide[KERNEL]),
        _gain(
            f"forward + backward + KL, 8192 x 256, {name}",
            DIAGONAL,
            5,
            wide_both[DIAGONAL],
            wide_both[KERNEL],
        ),
        _gain("forward + backward + KL, 128 x 10", DIAGONAL, 2.5, small[DIAGONAL], small[KERNEL]),
        _gain("forward + backward + KL, 128 x 128", LOOP, 100, loop[LOOP], loop[KERNEL]),
        _cost("forward + KL, 8192 x 256", "at rho = 0, with no scan", 1.3, wide[KERNEL], wide[uncorrelated]),
    ]


def over_lengths(budget: float) -> list[Target]:
    """Every length at 2^21 elements against 8192 x 256, on one thread, all of them in alternation."""
    torch.set_num_threads(1)
    lengths = [(max(1, sweep.ELEMENTS // d), d) for d in sweep.LENGTHS]
    calls = {size: sweep.calls(*size, torch.float32)[FORWARD] for size in lengths}
    times = interleaved(
        {f"{rows} {d}": call for (rows, d), call in calls.items()}, cpu_timer, budget=budget, rounds=60
    )
    elements = {f"{rows} {d}": rows * d for rows, d in lengths}
    base = times["8192 256"]

    def as_wide(key: str) -> Quantiles:
        """The times that 8192 x 256 would take at this length's time an element."""
        t, scale = times[key], WIDE[0] * WIDE[1] / elements[key]
        return Quantiles(t.q20 * scale, t.q50 * scale, t.q80 * scale, t.samples, t.least * scale)

    scaled = {key: as_wide(key) for key in times}
    shortest = next(key for key in scaled if key.endswith(" 8"))
    slowest = max((key for key in scaled if key != shortest), key=lambda key: scaled[key].q50)
    own = "its own time an element at 8192 x 256"
    return [
        _cost(
            f"forward + KL, the slowest d from 10 to 1e6 ({slowest.split()[1]})",
            own,
            1.5,
            scaled[slowest],
            base,
        ),
        _cost("forward + KL, d = 8", own, 2, scaled[shortest], base),
    ]


def over_threads(budget: float) -> list[Target]:
    found = []
    for size in (WIDE, LONG):
        for direction in (FORWARD, BOTH):
            call = sweep.calls(*size, torch.float32)[direction]
            calls = {str(count): partial(_on_threads, count, call) for count in (1, 2)}
            times = interleaved(calls, cpu_timer, budget=budget, rounds=60)
            work = f"{direction} + KL, {size[0]} x {size[1]}, 2 threads"
            found.append(_gain(work, "1 thread", 1.7, times["1"], times["2"]))
    return found


def over_types(threads: int, budget: float) -> list[Target]:
    torch.set_num_threads(threads)
    found = []
    for direction in (FORWARD, BOTH):
        calls = {str(t): sweep.calls(*WIDE, t)[direction] for t in (torch.float32, torch.bfloat16)}
        times = interleaved(calls, cpu_timer, budget=budget, rounds=60)
        work = f"{direction} + KL, bfloat16, 8192 x 256"
        found.append(_cost(work, "float32", 1.0, times["torch.bfloat16"], times["torch.float32"]))
    return found


def extra_memory() -> Target:
    extra = memory.in_child(*WIDE, "native", compiled=False)[KERNEL, BOTH]
    bytes_an_element = round(max(extra.tensors, extra.pages or 0) / (WIDE[0] * WIDE[1]), 2)
    work = "extra bytes an element, forward + backward"
    return Target(work, "what is returned", 0.0, bytes_an_element, bytes_an_element, False)


def markdown(targets: list[Target]) -> list[str]:
    lines = ["| work | against | bound | reached | quickest samples | |", "|---|---|--:|--:|--:|---|"]
    for target in targets:
        sign = ">=" if target.gain else "<="
        verdict = "met" if target.met else "**not met**"
        lines.append(
            f"| {target.work} | {target.against} | {sign} {target.bound:g} | {target.reached:.3g} "
            f"| {target.at_best:.3g} | {verdict} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.targets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--budget", type=float, default=2.0, help="seconds for each call (default: %(default)s)"
    )
    parser.add_argument("--no-files", action="store_true", help="print only")
    options = parser.parse_args()
    refuse_if_wrong("native")
    machine = hardware.describe() | {"freed_memory_kept": keep_freed_memory()}
    threads = min(2, machine["cores"])
    targets = [
        *against_peers(threads, options.budget),
        *over_lengths(options.budget),
        *(over_threads(options.budget) if threads > 1 else []),
        *over_types(threads, options.budget),
        extra_memory(),
    ]
    command = shlex.join(["python", "-m", "bench.targets", *sys.argv[1:]])
    text = "\n".join(
        ["# Targets of the CPU kernel", "", *report.provenance(machine, command), "", *markdown(targets)]
    )
    print(text)
    if options.no_files:
        return
    folder = sweep.RESULTS
    stem = report.unused_stem(folder, f"targets-{hardware.host_class(machine)}-{date.today().isoformat()}")
    record = {"command": command, "hardware": machine, "targets": [asdict(target) for target in targets]}
    report.save(stem, text, record)
    print(f"wrote {stem}.json, .md")


if __name__ == "__main__":
    main()
