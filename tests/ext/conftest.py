"""Backends and devices as parameters, known answers, and outputs that show when nobody wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rhovae_ext

BACKENDS = ("reference", "native")
DEVICES = ("cpu",)
ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(os.environ.get("RHOVAE_VECTORS", ROOT.parent / "shared" / "vectors"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "cpu" and not torch.get_device_module(name).is_available():
        pytest.skip(f"no {name} device on this machine")
    return name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, device: str) -> str:
    name: str = request.param
    reason = rhovae_ext.available_backends(device)[name]
    if reason is not None:
        pytest.skip(f"{name} on {device}: {reason}")
    return name


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty gives NaN: what a kernel does not write, or reads too early, comes to light."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _vectors(name: str) -> Any:
    path = VECTORS / name
    if not path.is_file():
        pytest.skip(f"no known answers at {path}: set RHOVAE_VECTORS to their folder")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def chain_answers() -> dict[str, Any]:
    """AR(1) cases from dense linear algebra in float64."""
    answers: dict[str, Any] = _vectors("ar1.json")
    return answers


@pytest.fixture(scope="session")
def noise_answers() -> list[dict[str, Any]]:
    """Philox words and normals from plain integers."""
    answers: list[dict[str, Any]] = _vectors("noise.json")
    return answers


@pytest.fixture(scope="session")
def philox_answers() -> list[tuple[list[int], list[int], list[int]]]:
    """The published (counter, key, result) of Random123."""
    lines = (ROOT / "tests" / "data" / "philox4x32_10.txt").read_text().splitlines()
    rows = [[int(word, 16) for word in line.split()] for line in lines if not line.startswith("#")]
    return [(row[:4], row[4:6], row[6:]) for row in rows]
