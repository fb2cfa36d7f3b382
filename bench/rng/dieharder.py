"""The words of the noise, in several orders, through every test of dieharder; and the verdict over all its parts.

`dieharder -a` is run in five parts, test by test, each part on a region of the stream of its own; what has been
run lies in build/rng/dieharder/ORDER/, a file per test and part, so a check that was stopped goes on. From each
part come the p-values of the single samples, and all parts together are judged by one Kolmogorov-Smirnov test:
scipy's exact one, for dieharder's own leans towards 1 with few samples (and then says WEAK of good generators).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "build" / "native" / "words"
FOLDER = ROOT / "build" / "rng" / "dieharder"

ORDERS = {
    "along": "one long row, block after block",
    "rows": "row after row of 10 steps, a batch as it lies in memory",
    "transposed": "a batch of 12,288 rows x 64 steps, transposed: the same step over neighbouring rows",
    "keys": "the first block of neighbouring seeds",
    "derived": "four blocks of each fold_in(key, 0), fold_in(key, 1), ... (so of split(key, n))",
    "split": "key, drawn = split(key, 2) again and again, four blocks of each drawn",
}
CONTROL = "AES_OFB"  # dieharder's own generator 205: what a test says of it, it says of good generators
SEED = 0

WHOLE = 5  # parts that make up what `dieharder -a` takes
WEAK, FAILED = 0.005, 1e-6  # dieharder's own limits, on either side


@dataclass(frozen=True)
class Test:
    """A test as `dieharder -a` runs it: its number, the length of its tuples, its samples."""

    number: int
    ntuple: int = 0
    samples: int = 100

    @property
    def name(self) -> str:
        return f"{self.number:03}-{self.ntuple:02}"

    def part_samples(self) -> int:
        return max(1, self.samples // WHOLE)


# In order of their cost, but for the long ones at the end.
TESTS = [
    *(Test(number) for number in (*range(17), 100, 101, 102)),
    *(Test(201, n, 1000) for n in range(2, 6)),
    *(Test(202, n) for n in range(2, 6)),
    Test(204, samples=1000),
    *(Test(number, samples=1) for number in range(205, 210)),
    *(Test(200, n) for n in range(1, 13)),
    Test(17),
    *(Test(203, n) for n in range(33)),
]
LONG = {203}  # more than half of the whole


@dataclass
class Result:
    """One statistic of one test over all parts so far."""

    test: str
    ntuple: int
    samples: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # by dieharder, of every part

    @property
    def p(self) -> float:
        # Of a single sample, that sample: KS of one would fold it.
        if len(self.samples) == 1:
            return self.samples[0]
        return float(stats.kstest(self.samples, "uniform", method="exact").pvalue)

    @property
    def verdict(self) -> str:
        edge = min(self.p, 1 - self.p)
        return "FAILED" if edge < FAILED else "WEAK" if edge < WEAK else "PASSED"


def _file(order: str, test: Test, part: int) -> Path:
    return FOLDER / order / f"{test.name}-{part:03}.txt"


def run(order: str, test: Test, part: int) -> None:
    """One part of a test, on its own region of the order's stream; its output is kept."""
    out = _file(order, test, part)
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = "test_name ntuple tsamples psamples pvalues assessment 65536".split()  # 65536: every sample's p
    command = ["dieharder", "-d", str(test.number), "-p", str(test.part_samples()), "-c", ","]
    command += ["-n", str(test.ntuple)] if test.ntuple or test.number == 203 else []
    command += [argument for flag in flags for argument in ("-D", flag)]
    if order == CONTROL:
        command += ["-g", "205", "-S", str(1 + part)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        region = part * len(TESTS) + TESTS.index(test)
        words = subprocess.Popen([WORDS, order, str(SEED), str(region << 33)], stdout=subprocess.PIPE)
        tested = subprocess.run(
            [*command, "-g", "200"], stdin=words.stdout, capture_output=True, text=True, check=True
        )
        output = tested.stdout
        assert words.stdout is not None
        words.stdout.close()
        words.wait()
    partial = out.with_suffix(f".{os.getpid()}")
    partial.write_text(output)
    partial.rename(out)


def results(order: str, test: Test) -> list[Result]:
    """What has been run of a test, its parts put together."""
    found: list[Result] = []
    for part, file in enumerate(sorted((FOLDER / order).glob(f"{test.name}-*.txt"))):
        at = -1
        for line in file.read_text().splitlines():
            fields = [text.strip() for text in line.split(",")]
            if re.fullmatch(r"[a-z]\w+", fields[0]):
                at += 1
                if part == 0:
                    found.append(Result(fields[0], int(fields[1])))
                found[at].said.append(fields[-1] or fields[-2])
            elif len(fields) == 3 and not fields[0]:
                found[at].samples.append(float(fields[1]))
    return found


def parts_run(order: str, test: Test) -> int:
    return len(list((FOLDER / order).glob(f"{test.name}-*.txt")))


def rounds(parts: int, long_parts: int) -> Iterator[tuple[Test, int]]:
    """First a part of everything, then the next parts of the short tests, then of the long ones."""
    yield from ((test, 0) for test in TESTS)
    yield from ((test, part) for part in range(1, parts) for test in TESTS if test.number not in LONG)
    yield from ((test, part) for part in range(1, long_parts) for test in TESTS if test.number in LONG)


def check(orders: list[str], parts: int, long_parts: int, jobs: int) -> None:
    """Runs what is missing; then the weak again, twice as many samples each time."""
    if not shutil.which("dieharder"):
        raise SystemExit("dieharder is not installed. Run: sudo apt install dieharder")
    if not WORDS.exists():
        raise SystemExit(f"{WORDS} is not built. Run: make rng-check")
    with ThreadPoolExecutor(jobs) as pool:
        todo = [(order, test, part) for test, part in rounds(parts, long_parts) for order in orders]
        list(pool.map(lambda one: run(*one), todo))
        for _ in range(3):
            weak = [
                (order, test, part)
                for order in orders
                for test in TESTS
                if any(result.verdict == "WEAK" for result in results(order, test))
                for part in range(parts_run(order, test), 2 * parts_run(order, test))
            ]
            list(pool.map(lambda one: run(*one), weak))
