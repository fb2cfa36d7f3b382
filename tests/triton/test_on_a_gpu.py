"""Tiles of full size, which only a GPU computes in reasonable time."""

from __future__ import annotations

import pytest
import torch

from tests.ext.cases import make_case
from tests.ext.test_types_and_strides import check

LENGTHS = (1, 10, 16, 63, 64, 256, 1000, 1024, 2049, 4096, 4099, 300_001)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: tiles of full size take the interpreter hours"
)
@pytest.mark.parametrize("kinds", [("row", "row"), ("step", "step")], ids=["row", "step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_lengths(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kinds: tuple[str, str]) -> None:
    monkeypatch.undo()  # the tiles of the table
    for d in LENGTHS:
        rows = 3 if d > 1000 else 70
        check(make_case((rows,), d, *kinds, dtype, logits=True, device="cuda", key=(5, d)), "triton")
