"""The Triton kernels run on a GPU if there is one, else in Triton's interpreter, in tiles small enough for
it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rhovae_ext
from tests.ext.conftest import poisoned_memory  # noqa: F401

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def available() -> None:
    reason = rhovae_ext.available_backends(DEVICE)["triton"]
    if reason is not None:
        pytest.skip(f"triton on {DEVICE}: {reason}")


@pytest.fixture(autouse=True)
def small_tiles(available: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shapes come by every branch: several rows a tile, several chunks a row and folds of chunks."""
    from rhovae_ext.triton import blocks, ops

    monkeypatch.setattr(blocks, "TILES", dict.fromkeys(blocks.TILES, blocks.Tile(of_a_warp=32, longest=16)))
    monkeypatch.setattr(ops, "FOLD", 2)


@pytest.fixture(autouse=True)
def rounded_halves(available: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts a float32 to bfloat16 off where every GPU rounds: here it rounds too."""
    import triton.language as tl
    from triton.runtime import interpreter

    from rhovae_ext.triton.launch import INTERPRETED

    if not INTERPRETED:
        return
    cut = interpreter.InterpreterBuilder.create_fp_trunc

    def rounded(builder: Any, source: Any, to: Any) -> Any:
        if to.scalar != tl.bfloat16:
            return cut(builder, source, to)
        values = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return interpreter.TensorHandle(values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", rounded)
