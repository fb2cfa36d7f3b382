"""Random shapes under every instruction set of this processor, each forced in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhovae_ext import native

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_random_shapes(capability: str) -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    environment = {**os.environ, "RHOVAE_CPU_CAPABILITY": capability}
    ask = "import torch, rhovae_ext; print(torch.ops.rhovae.cpu_capability())"
    answer = subprocess.run(
        [sys.executable, "-c", ask], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "that this processor has" in answer.stderr:
        pytest.skip(f"this processor has no {capability}")
    assert answer.stdout.strip() == capability, answer.stderr
    quiet = ["-q", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, "tests/ext/test_random_shapes.py", "-k", "native"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-2000:]
    assert "passed" in tests.stdout
    assert "skipped" not in tests.stdout
