"""The words of the noise, in several orders, through every test of dieharder.

`dieharder -a` is run in parts, test by test, each part on a region of the stream of its own. What has been
run lies in build/rng/dieharder/ORDER/, a file per test and part, so a check that was stopped goes on. Of all
parts the p-values of the single samples are kept, and one Kolmogorov-Smirnov test judges them: scipy's exact
one, for dieharder's own leans towards 1 with few samples, and then calls good generators weak.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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

WEAK, FAILED = 0.005, 1e-6  # dieharder's own limits, on either side
STAGES = (1, 2, 5, 10, 20, 40)  # numbers of parts after which a result is looked at


@dataclass(frozen=True)
class Test:
    """A test as `dieharder -a` runs it, and the parts that its samples are run in."""

    number: int
    ntuple: int = 0
    samples: int = 100
    parts: int = 5

    @property
    def name(self) -> str:
        return f"{self.number:03}-{self.ntuple:02}"

    @property
    def part_samples(self) -> int:
        return max(1, self.samples // self.parts)


# In order of what they cost. The last take more than half of the time.
TESTS = [
    *(Test(number) for number in (*range(17), 100, 101, 102)),
    *(Test(201, n, 1000) for n in range(2, 6)),
    *(Test(202, n) for n in range(2, 6)),
    Test(204, samples=1000),
    *(Test(number, samples=1) for number in range(205, 210)),
    *(Test(200, n) for n in range(1, 13)),
    Test(17),
    *(Test(203, n, parts=20) for n in range(33)),
]


@dataclass
class Result:
    """One statistic of one test: the p-values of its samples, part by part."""

    test: str
    ntuple: int
    parts: list[list[float]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return sum(map(len, self.parts))

    def p(self, parts: int | None = None) -> float:
        """The p-value of the first parts together; of all by default."""
        samples = [value for part in self.parts[:parts] for value in part]
        if len(samples) == 1:  # says itself what the test of one would fold
            return samples[0]
        return float(stats.kstest(samples, "uniform", method="exact").pvalue)

    def verdict(self, parts: int | None = None) -> str:
        edge = min(self.p(parts), 1 - self.p(parts))
        return "failed" if edge < FAILED else "weak" if edge < WEAK else "passed"


def _files(order: str, test: Test) -> list[Path]:
    return sorted((FOLDER / order).glob(f"{test.name}-*.txt"))


def results(order: str, test: Test) -> list[Result]:
    """What has been run of a test, its parts put together."""
    found: dict[int, Result] = {}
    for file in _files(order, test):
        at = 0
        for line in file.read_text().splitlines():
            fields = [text.strip() for text in line.split(",")]
            if re.fullmatch(r"[a-z]\w+", fields[0]):
                at += 1
                found.setdefault(at, Result(fields[0], int(fields[1]))).parts.append([])
            elif len(fields) == 3 and not fields[0]:
                found[at].parts[-1].append(float(fields[1]))
    return list(found.values())


def run(order: str, test: Test, part: int) -> None:
    """One part of a test, on its own region of the order's stream; its output is kept."""
    out = FOLDER / order / f"{test.name}-{part:03}.txt"
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    every_sample = "65536"  # dieharder knows this flag by its number alone
    flags = ["test_name", "ntuple", "tsamples", "psamples", "pvalues", "assessment", every_sample]
    command = ["dieharder", "-d", str(test.number), "-p", str(test.part_samples), "-c", ","]
    command += ["-n", str(test.ntuple)] if test.ntuple else []
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


def _again(order: str, test: Test) -> range:
    """Of a test that did not pass as many parts again as there are, up to eight times what `-a` takes."""
    count = len(_files(order, test))
    passed = all(result.verdict() == "passed" for result in results(order, test))
    return range(count, count if passed else min(2 * count, 8 * test.parts))


def check(orders: list[str], jobs: int) -> None:
    """Runs what is missing: a part of every test, then the others; after either what is weak, again."""
    if not shutil.which("dieharder"):
        raise SystemExit("dieharder is not installed. Run: sudo apt install dieharder")
    if not WORDS.exists():
        raise SystemExit(f"{WORDS} is not built. Run: make rng-check")
    every = [(order, test) for order in orders for test in TESTS]
    first = [(order, test, 0) for test in TESTS for order in orders]
    others = [(order, test, part) for test in TESTS for part in range(1, test.parts) for order in orders]
    with ThreadPoolExecutor(jobs) as pool:
        for todo in (first, others):
            while todo:
                list(pool.map(lambda part: run(*part), todo))
                todo = [(order, test, part) for order, test in every for part in _again(order, test)]


def ever_weak(orders: list[str]) -> list[tuple[str, Test, Result]]:
    """What at some stage, or now, did not pass."""
    return [
        (order, test, result)
        for order in orders
        for test in TESTS
        for result in results(order, test)
        if any(result.verdict(parts) != "passed" for parts in (*STAGES, None))
    ]


def control(tests: set[Test], jobs: int) -> None:
    """The same tests on a generator that nobody doubts."""
    with ThreadPoolExecutor(jobs) as pool:
        todo = [(CONTROL, test, part) for test in TESTS if test in tests for part in range(test.parts)]
        list(pool.map(lambda each: run(*each), todo))
