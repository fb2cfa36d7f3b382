"""Python in a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What it printed and how it ended; a skip where it was to use instructions that this processor lacks."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "that this processor has" in done.stderr:
        pytest.skip(f"this processor has no {environment['RHOVAE_CPU_CAPABILITY']}")
    return done
