"""Numbers in extended precision, each with the error that a careful implementation makes on the way to it.

The error is carried along with the value, so that no tolerance is guessed: numbers that cancel, a chain near
|rho| = 1 and a quotient by a small c allow what they must, and everything else next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
REAL: Any = np.longdouble


@dataclass(frozen=True)
class Rounded:
    """value, its error, and the unit of rounding of the arithmetic that is judged."""

    value: Array
    error: Array
    unit: float

    @staticmethod
    def exact(value: Array, unit: float) -> Rounded:
        value = np.asarray(value, REAL)
        return Rounded(value, np.zeros_like(value), unit)

    def _result(self, value: Array, *errors: Array, roundings: float = 1.0) -> Rounded:
        own = roundings * self.unit * value
        return Rounded(value, np.sqrt(sum((e * e for e in errors), own * own)), self.unit)

    def __add__(self, other: Rounded) -> Rounded:
        return self._result(self.value + other.value, self.error, other.error)

    def __sub__(self, other: Rounded) -> Rounded:
        return self._result(self.value - other.value, self.error, other.error)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error, self.unit)

    def __mul__(self, other: Rounded) -> Rounded:
        return self._result(self.value * other.value, self.value * other.error, other.value * self.error)

    def __truediv__(self, other: Rounded) -> Rounded:
        quotient = self.value / other.value
        return self._result(quotient, self.error / other.value, quotient * other.error / other.value)

    def rounded(self, value: Array, roundings: float = 2.0) -> Rounded:
        """A function of exact numbers, by a library that misses it by that many units."""
        return self._result(value, roundings=roundings)

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.value[index], self.error[index], self.unit)

    def apply(self, function: Callable[[Array], Array]) -> Rounded:
        """What moves numbers about and computes nothing."""
        return Rounded(function(self.value), function(self.error), self.unit)

    def sum(self, axes: tuple[int, ...]) -> Rounded:
        """Errors of neighbours go together: they are added as they are."""
        if not axes:
            return self
        size = np.abs(self.value).sum(axes, keepdims=True)
        return Rounded(
            self.value.sum(axes, keepdims=True),
            self.error.sum(axes, keepdims=True) + self.unit * size,
            self.unit,
        )

    def sum_to(self, shape: tuple[int, ...]) -> Rounded:
        """Summed over the axes that were broadcast from `shape`."""
        extra = self.value.ndim - len(shape)
        axes = tuple(
            axis
            for axis in range(self.value.ndim)
            if axis < extra or (shape[axis - extra] == 1 and self.value.shape[axis] != 1)
        )
        return self.sum(axes).apply(lambda values: values.reshape(shape))


def recur(multiplier: Rounded, source: Rounded, backwards: bool = False) -> Rounded:
    """y_k = multiplier_k y_{k-1} + source_k along the last axis; the roundings of all steps go along.

    Those of different steps as they come; that of one multiplier for all steps always to the same side.
    """
    shape = np.broadcast_shapes(multiplier.value.shape, source.value.shape)

    def by_step(values: Array) -> Array:
        return np.moveaxis(np.broadcast_to(values, shape), -1, 0)

    m, s, unit = by_step(multiplier.value).copy(), by_step(source.value).copy(), 2 * source.unit
    squared, local, blur = m * m, by_step(source.error) ** 2, np.abs(by_step(multiplier.error))
    shared = multiplier.value.shape[-1:] == (1,)
    y, variance = np.empty_like(s), np.empty_like(s)
    now, spread, drift = (np.zeros(s.shape[1:], REAL) for _ in range(3))
    for k in reversed(range(len(s))) if backwards else range(len(s)):
        before = blur[k] * np.abs(now)
        carried = m[k] * now
        now = carried + s[k]
        rounding = unit * unit * (now * now + carried * carried)
        spread = squared[k] * spread + local[k] + rounding
        if shared:
            drift = np.abs(m[k]) * drift + before
        else:
            spread = spread + before * before
        y[k], variance[k] = now, spread + drift * drift
    return Rounded(np.moveaxis(y, 0, -1), np.moveaxis(np.sqrt(variance), 0, -1), source.unit)
