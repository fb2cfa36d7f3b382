"""The emulator itself: it stops a kernel that breaks the machine's rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhovae_ext import reference


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


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("steps", [1, 2, 7, 12, 130])
@pytest.mark.parametrize("samples", [1, 3])
def test_noise_of_rows_with_keys_of_their_own(cuda: Any, samples: int, steps: int, wide: bool) -> None:
    generator = np.random.default_rng(steps)
    keys = generator.integers(0, 2**64, (9, 2), dtype=np.uint64)
    numbers = generator.integers(0, 2**40, 9)
    found = cuda.row_noise(
        keys=keys, numbers=numbers, steps=steps, samples=samples, row_offset=2**63 + 11, wide=wide
    )
    rows = torch.from_numpy(numbers) + (-(2**63) + 11)
    rows = rows * samples + torch.arange(samples)[:, None]
    dtype = torch.float64 if wide else torch.float32
    expected = reference.normals(torch.from_numpy(keys), rows, steps, dtype)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if wide else 1e-5)
