"""The emulator itself: it stops a kernel that breaks the machine's rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("barrier", "barrier that a thread of its block does not reach"),
        ("shuffle", "shuffle that a lane of its warp does not reach"),
        ("alignment", "misaligned wide access"),
    ],
)
def test_broken_rules_stop_the_program(cuda: Any, rule: str, said: str) -> None:
    folder = str(Path(cuda.__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {folder!r}); import rhovae_cuda_emulator as m; m.broken({rule!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr


def test_key_from_values_and_from_memory(cuda: Any) -> None:
    # The generator counts words, a key blocks of four; seeds are 64-bit patterns.
    assert cuda.write_key(in_memory=False, seed=7, offset=48, extra=99) == (7, 12)
    assert cuda.write_key(in_memory=True, seed=-1, offset=48, extra=8) == (2**64 - 1, 14)
