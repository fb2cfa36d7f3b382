"""docs/rng.md and docs/rng.json from what has been run so far."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date

import numpy as np
from scipy import special, stats

from bench import hardware
from bench.rng import dieharder, normals
from bench.rng.normals import Statistic, Tally

DOCS = dieharder.ROOT / "docs"

HEAD = """# The noise, tested

Written by `make rng-check` (`python -m bench.rng`), which goes on where it was stopped; `--report` writes
down what has been run. {date}, {cpu}, {cores} cores, {instruction_set}, torch {torch}, {system}.
Every statistic with its value and z, and every p-value, is in [rng.json](rng.json).

A sound generator's statistics scatter: the largest |z| of 400 is about 3.1. What would tell is a |z| beyond
the bound that a sound one keeps in 99 checks of 100 (Bonferroni), or one that grows as more noise is drawn.
"""


def write(tallies: list[Tally]) -> None:
    """Both files, from the tallies of normals and from the tests' outputs."""
    tallies = [tally for tally in tallies if tally.count]
    machine = hardware.describe()
    statistics = {np.dtype(tally.dtype).name: tally.statistics() for tally in tallies}
    ran = [(order, result) for order in dieharder.ORDERS for result in _results(order)]
    text = HEAD.format(**machine, date=date.today())
    text += "".join(_normals(tally, statistics[np.dtype(tally.dtype).name]) for tally in tallies)
    text += _dieharder()
    (DOCS / "rng.md").write_text(text)
    (DOCS / "rng.json").write_text(
        _json(
            {
                "hardware": machine,
                "seed": dieharder.SEED,
                "normals": {np.dtype(tally.dtype).name: tally.count for tally in tallies},
                "statistics": [
                    [name, *_rounded(statistic)] for name, each in statistics.items() for statistic in each
                ],
                "dieharder": [
                    [order, result.test, result.ntuple, result.samples, round(result.p(), 6)]
                    for order, result in ran
                ],
            }
        )
    )


def _rounded(statistic: Statistic) -> tuple[str, float, float, float]:
    value, expected = (float(f"{number:.9g}") for number in (statistic.value, statistic.expected))
    return statistic.name, value, expected, round(float(statistic.z), 3)


def _json(content: dict[str, object]) -> str:
    """A line per statistic, so that a change shows as one."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(row) for row in value)
            lines.append(f'"{name}": [\n  {rows}\n ]')
        else:
            lines.append(f'"{name}": {json.dumps(value)}')
    return "{" + ",\n ".join(lines) + "}\n"


def _bound(count: int) -> float:
    return float(-special.ndtri(0.005 / count))


def _normals(tally: Tally, statistics: list[Statistic]) -> str:
    name, power, count = np.dtype(tally.dtype).name, np.log2(tally.count), len(statistics)
    largest = max(statistics, key=lambda statistic: abs(statistic.z))
    beyond = [sum(abs(statistic.z) > limit for statistic in statistics) for limit in (2, 3)]
    shapes = " and ".join(str(shape) for shape in normals.SHAPES)
    text = f"""
## 2^{power:g} normals in {name}

`ar1_reparam` with mean 0, s = 1, rho = 0 on the CPU, in blocks of shape (keys, samples, rows, steps),
{shapes} in turn; the keys are neighbouring seeds from {dieharder.SEED} on, and
`fold_in({dieharder.SEED}, i)` for neighbouring i.

**{count} statistics, largest |z| {abs(largest.z):.2f}** ({largest.name}); bound {_bound(count):.2f}.
Beyond 2: {beyond[0]} (expected {0.0455 * count:.0f}), beyond 3: {beyond[1]} (expected {0.0027 * count:.1f}).

| statistic | value | expected | z |
|---|--:|--:|--:|
"""
    for each in statistics:
        if ": " not in each.name:
            text += f"| {each.name} | {each.value:.9g} | {each.expected:.9g} | {each.z:+.2f} |\n"
    text += f"\nThe largest normal: {tally.largest:.4f}. {_tails(tally) if tally.dtype is np.float32 else ''}"
    text += """
Products of two places along an axis, x of one and y of the other: for each distance of the two a z of its
own, and one for the squares of the z of every single pair, together (chi-square):

| axis | product | distances | largest abs z | at | all pairs, z |
|---|---|--:|--:|--:|--:|
"""
    for axis in tally.pairs:
        for product in ("x y", "(x^2-1)(y^2-1)", "x (y^2-1)", "(x^2-1) y"):
            ours = [
                s for s in statistics if s.name.startswith(f"{axis}, ") and s.name.endswith(f": {product}")
            ]
            *lags, together = ours
            worst = max(lags, key=lambda s: abs(s.z))
            at = worst.name.split(": ")[0].split(" ")[-1]
            text += f"| {axis} | {product} | {len(lags)} | {abs(worst.z):.2f} | {at} | {together.z:+.2f} |\n"
    return text


def _tails(tally: Tally) -> str:
    ideal = (tally.count * normals.tail(limit, discrete=False) for limit in normals.TAILS)
    beyond = ", ".join(f"{count:.7g}" for count in ideal)
    return f"""u1 has 32 bits: the radius takes 2^32 values, none above
sqrt(66 ln 2) = 6.7637, and the tails expected above are counted over these. The ideal normal's are, on either
side: {beyond}.
"""


def _results(order: str) -> Iterable[dieharder.Result]:
    return (result for test in dieharder.TESTS for result in dieharder.results(order, test))


def _share(order: str) -> float:
    """Of the samples of the tests of `dieharder -a` the share that has been run, the tests alike."""
    shares = []
    for test in dieharder.TESTS:
        ran = dieharder.results(order, test)
        shares.append(min(1.0, ran[0].samples / test.samples) if ran else 0.0)
    return float(np.mean(shares))


def _dieharder() -> str:
    ran = {order: list(_results(order)) for order in dieharder.ORDERS}
    ran = {order: results for order, results in ran.items() if results}
    if not ran:
        return ""
    text = f"""
## The words, through dieharder

`words ORDER {dieharder.SEED} SKIP | dieharder -g 200 -d TEST -n NTUPLE -p SAMPLES` (3.31.1), for every test
and tuple of `dieharder -a`, in parts of a fifth of its samples (a twentieth of rgb_lagged_sum's; one where it
takes one in all), each part from a region of the stream of its own. A result is the p-value of an exact
Kolmogorov-Smirnov test on all samples of the parts run; weak is below {dieharder.WEAK} or above
{1 - dieharder.WEAK}, failed within {dieharder.FAILED} of 0 or 1: dieharder's limits, by which of sound words
one result in 100 is weak. (Its own p-value is not used: it leans towards 1 when samples are few.) What is not
passed runs again, its parts doubled, until it is, up to eight times the samples of `-a`.

| order | results | parts | run of `-a` | weak, first part | weak, all parts | failed | least p | p of all p |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
"""
    for order, results in ran.items():
        p = [result.p() for result in results]
        parts = [len(result.parts) for result in results]
        first = sum(result.verdict(1) != "passed" for result in results)
        verdicts = [result.verdict() for result in results]
        text += (
            f"| `{order}` | {len(results)} | {min(parts)}-{max(parts)} | {_share(order):.0%} | {first} "
            f"| {verdicts.count('weak')} | {verdicts.count('failed')} | {min(p):.2g} "
            f"| {stats.kstest(p, 'uniform').pvalue:.2f} |\n"
        )
    total = sum(len(results) for results in ran.values())
    text += f"\nExpected of sound words: {total / 100:.1f} weak of {total} results at any one stage.\n"
    text += "".join(f"`{order}`: {what}.\n" for order, what in dieharder.ORDERS.items() if order in ran)
    text += f"""
What was weak at any stage, as more of the stream came in, and the same tests on dieharder's own
{dieharder.CONTROL}:

| order | test | n | {" | ".join(f"{stage} parts" for stage in dieharder.STAGES)} | all (parts) |
|---|---|--:|{"--:|" * (len(dieharder.STAGES) + 1)}
"""
    weak = [(order, result) for order, _, result in dieharder.ever_weak(list(ran))]
    weak += [(dieharder.CONTROL, result) for result in _results(dieharder.CONTROL)]
    for order, result in weak:
        cells = [f"{result.p(n):.4f}" if len(result.parts) >= n else "" for n in dieharder.STAGES]
        cells.append(f"{result.p():.4f} ({len(result.parts)})")
        text += f"| `{order}` | {result.test} | {result.ntuple} | {' | '.join(cells)} |\n"
    return text
