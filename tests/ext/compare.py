"""One tolerance table by type, and the comparison that uses it."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the largest value of the result. Half types: one rounding of the result, with a margin of two.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
# eps against the float64 normals, absolute.
NOISE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def error(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference, relative to the largest expected value (at least `floor`); NaN if there is one."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    if actual.isnan().any() or expected.isnan().any():
        return float("nan")
    largest = max(float(expected.abs().max()), floor)
    return float((actual - expected).abs().max()) / (largest if largest > 0 else 1.0)


def assert_close(
    actual: Tensor, expected: Tensor, what: str, tolerance: float | None = None, floor: float = 0.0
) -> None:
    """Equal within the tolerance of the result's type; `floor` for a sum that may come to nearly nothing."""
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    measured = error(actual, expected, floor)
    assert measured <= limit, f"{what}: relative error {measured:.3g}, allowed {limit:.3g}"
