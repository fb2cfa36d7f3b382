"""Known answers, read from the folder that RHOVAE_VECTORS names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
VECTORS = Path(os.environ.get("RHOVAE_VECTORS", ROOT.parent / "shared" / "vectors"))


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
