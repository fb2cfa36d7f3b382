"""Statistics of the library's normals, each with its z-value.

The noise comes as a user gets it, `ar1_reparam` of mean 0, scale 1 and no correlation, in blocks of shape
(keys, samples, rows, steps). Of them: moments, 2^16 bins of equal probability, Anderson-Darling, tails, and
along every axis the products of all pairs of places. Sums are kept in float64, counts in int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, special, stats

import rhovae_ext

Array = NDArray[Any]

MOMENTS = 8
BINS = 1 << 16
TAILS = (3.0, 4.0, 5.0, 6.0, 6.5)
REACH = 32  # places along an axis whose pairs are looked at
# Rows that share a register's lanes, and rows that have it to themselves: (keys, samples, rows, steps).
SHAPES = ((8, 8, 1024, 32), (8, 8, 64, 512))
BLOCK = 1 << 21
SAVE_EVERY = 64
EXACT_EVERY = 64  # blocks; in the others Anderson-Darling has the bins alone


class Statistic(NamedTuple):
    name: str
    value: float
    expected: float
    z: float


def keys_of(block: int, seed: int, count: int) -> tuple[str, list[Any]]:
    """Neighbouring seeds and derived keys, two blocks of one and two of the other."""
    first = block * count
    if block // len(SHAPES) % 2:
        return "derived keys", [rhovae_ext.fold_in(seed, first + i) for i in range(count)]
    return "seeds", [(seed + first + i, 0) for i in range(count)]


def draw(block: int, seed: int, dtype: torch.dtype) -> tuple[str, Array]:
    """What the keys of a block differ in, and its normals."""
    keys, samples, rows, steps = SHAPES[block % len(SHAPES)]
    kind, each = keys_of(block, seed, keys)
    mu = torch.zeros(rows, steps, dtype=dtype)
    drawn = [rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=key, num_samples=samples).numpy() for key in each]
    return kind, np.stack(drawn)


def edges(dtype: Any) -> tuple[Array, Array]:
    """The inner edges of the bins in a type, and the bins' probabilities for normals rounded to that type."""
    inner = special.ndtri(np.arange(1, BINS) / BINS).astype(dtype)
    # A value is below an edge when it was nearer to the number before: what counts is the middle of the two.
    below = np.nextafter(inner, dtype(-np.inf)).astype(np.float64)
    middle = inner + (below - inner) / 2
    return inner, np.diff(special.ndtr(middle), prepend=0.0, append=1.0)


@dataclass
class Tally:
    """Running sums over blocks of normals, from which every statistic follows."""

    dtype: Any = np.float32
    count: int = 0
    powers: Array = field(default_factory=lambda: np.zeros(MOMENTS))
    bins: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    tails: Array = field(default_factory=lambda: np.zeros((2, len(TAILS)), np.int64))
    largest: float = 0.0
    anderson: list[float] = field(default_factory=list)
    # By axis: values by values, squares by squares, values by squares; and how often every pair was seen.
    pairs: dict[str, Array] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._edges, self._probabilities = edges(self.dtype)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".part.npz")
        kept: dict[str, Any] = {f"pairs {axis}": sums for axis, sums in self.pairs.items()}
        kept |= {f"seen {axis}": count for axis, count in self.seen.items()}
        for name in ("count", "powers", "bins", "tails", "largest", "anderson"):
            kept[name] = getattr(self, name)
        np.savez(partial, allow_pickle=False, **kept)
        partial.rename(path)

    @classmethod
    def load(cls, path: Path, dtype: Any) -> Tally:
        """What was saved; nothing yet where there is no such file."""
        if not path.exists():
            return cls(dtype)
        with np.load(path) as kept:
            return cls(
                dtype,
                int(kept["count"]),
                kept["powers"],
                kept["bins"],
                kept["tails"],
                float(kept["largest"]),
                kept["anderson"].tolist(),
                {name[6:]: kept[name] for name in kept if name.startswith("pairs ")},
                {name[5:]: int(kept[name]) for name in kept if name.startswith("seen ")},
            )

    def add(self, kind: str, normals: Array) -> None:
        """A block of shape (keys, samples, rows, steps)."""
        ordered = np.sort(normals, axis=None)
        if self.count // BLOCK % EXACT_EVERY == 0:
            self.anderson.append(anderson_darling(ordered))
        self.count += normals.size
        self.bins += np.diff(ordered.searchsorted(self._edges), prepend=0, append=normals.size)
        limits = np.array(TAILS, self.dtype)
        self.tails[0] += ordered.searchsorted(-limits)
        self.tails[1] += normals.size - ordered.searchsorted(limits, side="right")
        self.largest = max(self.largest, float(-ordered[0]), float(ordered[-1]))
        # A part at a time, small enough for the processor's cache.
        for each in range(normals.shape[1]):
            values = np.ascontiguousarray(normals[:, each])
            keys, rows, steps = values.shape
            self._add_powers(values.ravel().astype(np.float64))
            self._add_pairs("steps", values, REACH, 1)
            self._add_pairs(f"steps by {REACH}", values, steps // REACH, REACH)
            self._add_pairs("rows", values, REACH, steps)
            self._add_pairs(kind, values, keys, rows * steps)
        for one_key in normals:
            self._add_pairs("samples", one_key, len(one_key), one_key[0].size)

    def _add_powers(self, x: Array) -> None:
        x2 = x * x
        x4 = x2 * x2
        x3 = x2 * x
        factors = ((x, None), (x, x), (x2, x), (x2, x2), (x4, x), (x4, x2), (x4, x3), (x4, x4))
        self.powers += [float(a.sum() if b is None else a @ b) for a, b in factors]

    def _add_pairs(self, axis: str, normals: Array, width: int, stride: int) -> None:
        """Sums of the products of all places along an axis, cut into groups of `width` places.

        One call's sums are in the normals' own type: what that rounds has no sign, and is 10^-6 of their
        spread.
        """
        if width < 2:
            return
        values = normals.reshape(-1, width, stride)
        squares = values * values - 1
        sums = np.stack(
            [_products(a, b) for a, b in ((values, values), (squares, squares), (values, squares))]
        )
        self.pairs[axis] = self.pairs.get(axis, 0) + sums.astype(np.float64)
        self.seen[axis] = self.seen.get(axis, 0) + values.size // width

    def statistics(self) -> list[Statistic]:
        return [*self._moments(), *self._distribution(), *self._tails(), *self._lags()]

    def _moments(self) -> Iterator[Statistic]:
        expected = [float(special.factorial2(k - 1)) if k % 2 == 0 else 0.0 for k in range(2 * MOMENTS + 1)]
        for k in range(1, MOMENTS + 1):
            mean = self.powers[k - 1] / self.count
            deviation = np.sqrt((expected[2 * k] - expected[k] ** 2) / self.count)
            yield Statistic(f"moment {k}", mean, expected[k], (mean - expected[k]) / deviation)

    def _distribution(self) -> Iterator[Statistic]:
        wanted = self.count * self._probabilities
        chi2 = float(((self.bins - wanted) ** 2 / wanted).sum())
        yield Statistic(f"chi-square of {BINS} bins", chi2, BINS - 1, _z(stats.chi2(BINS - 1), chi2))
        below, expected = np.cumsum(self.bins)[:-1] / self.count, np.cumsum(self._probabilities)[:-1]
        weights = self._probabilities[:-1] / (expected * (1 - expected))
        binned = float(self.count * (weights * (below - expected) ** 2).sum())
        yield Statistic("Anderson-Darling, bins", binned, 1.0, float(special.ndtri(anderson_cdf(binned))))
        # Mean 1 and variance 2 (pi^2 - 9) / 3 each.
        mean = float(np.mean(self.anderson))
        deviation = np.sqrt(2 * (np.pi**2 - 9) / 3 / len(self.anderson))
        yield Statistic(
            f"Anderson-Darling, mean of {len(self.anderson)} blocks", mean, 1.0, (mean - 1) / deviation
        )

    def _tails(self) -> Iterator[Statistic]:
        for i, limit in enumerate(TAILS):
            expected = self.count * tail(limit, discrete=self.dtype is np.float32)
            for name, seen in (
                (f"below -{limit:g}", self.tails[0, i]),
                (f"above {limit:g}", self.tails[1, i]),
            ):
                yield Statistic(name, int(seen), expected, _z(stats.poisson(expected), int(seen)))

    def _lags(self) -> Iterator[Statistic]:
        for axis, (plain, squared, crossed) in self.pairs.items():
            for name, sums, variance in (
                ("x y", plain, 1.0),
                ("(x^2-1)(y^2-1)", squared, 4.0),
                ("x (y^2-1)", crossed, 2.0),
                ("(x^2-1) y", crossed.T, 2.0),
            ):
                width = len(sums)
                z = np.triu(sums, 1) / np.sqrt(self.seen[axis] * variance)
                for lag in range(1, width):
                    diagonal = np.diagonal(z, lag)
                    at = f"{axis}, lag {lag}: {name}"
                    value = diagonal.sum() / np.sqrt(len(diagonal))
                    yield Statistic(
                        at, value * np.sqrt(variance / (self.seen[axis] * len(diagonal))), 0.0, value
                    )
                count = width * (width - 1) // 2
                total = float((z**2).sum())
                yield Statistic(f"{axis}, {count} pairs: {name}", total, count, _z(stats.chi2(count), total))


def _products(a: Array, b: Array) -> Array:
    """Sums over groups and what follows of a[:, i] b[:, j]."""
    sums: Array = a[..., 0].T @ b[..., 0] if a.shape[2] == 1 else np.matmul(a, b.transpose(0, 2, 1)).sum(0)
    return sums


def _z(distribution: Any, value: float) -> float:
    """The standard normal as far out; of a count, half of its own probability on either side."""
    own = distribution.pmf(value) / 2 if hasattr(distribution.dist, "pmf") else 0.0
    below, above = distribution.cdf(value) - own, distribution.sf(value) + own
    return float(special.ndtri(below) if below < above else -special.ndtri(above))


@cache
def tail(limit: float, discrete: bool) -> float:
    """P(x > limit): the normal's, or exactly what Box-Muller makes of a u1 of 32 bits.

    There the radius has the 2^32 values sqrt(-2 ln u), none of them above 6.76, and the angle is uniform:
    P = mean of acos(limit / r) / pi over the radii beyond the limit.
    """
    if not discrete:
        return float(special.ndtr(-limit))
    total, start = 0.0, 0
    reach = int(np.exp(-limit * limit / 2) * 2**32) + 1
    while start < reach:
        words = np.arange(start, min(start + (1 << 22), reach))
        radius = np.sqrt(-2 * np.log((words + 0.5) * 2.0**-32))
        total += float(np.arccos(limit / radius[radius > limit]).sum())
        start += 1 << 22
    return total / np.pi * 2.0**-32


def anderson_darling(ordered: Array) -> float:
    """A^2 of a sorted sample against the standard normal, by its definition."""
    n, x = ordered.size, ordered.astype(np.float64)
    weights = 2 * np.arange(1, n + 1) - 1
    return float(-n - (weights * (special.log_ndtr(x) + special.log_ndtr(-x[::-1]))).sum() / n)


def anderson_cdf(value: float) -> float:
    """The limiting distribution of A^2. Source: Anderson and Darling (1954)."""
    total = 0.0
    for j in range(40):
        b = (4 * j + 1) ** 2 * np.pi**2 / (8 * value)
        if b > 700:
            break
        area, _ = integrate.quad(lambda w, b=b: np.exp(value / (8 * (w * w + 1)) - b * w * w), 0, np.inf)
        total += special.binom(-0.5, j) * (4 * j + 1) * np.exp(-b) * area
    return float(np.sqrt(2 * np.pi) / value * total)


def check(path: Path, dtype: torch.dtype, seed: int, count: int) -> Tally:
    """The tally of `count` normals; goes on from what `path` holds, and saves there as it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally.load(path, np.float64 if dtype is torch.float64 else np.float32)
    while tally.count < count:
        tally.add(*draw(tally.count // BLOCK, seed, dtype))
        if tally.count // BLOCK % SAVE_EVERY == 0 or tally.count >= count:
            tally.save(path)
    return tally
