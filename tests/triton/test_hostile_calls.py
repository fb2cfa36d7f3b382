"""The ops called directly refuse what the compiled ones refuse; batches without rows come through."""

from __future__ import annotations

import pytest
import torch

from tests.ext.test_empty import check_every_function
from tests.ext.test_ops_called_directly import HOSTILE, changed, on, refused
from tests.triton.conftest import DEVICE


@pytest.mark.parametrize("what", [what for what in HOSTILE if "past all" not in what])
def test_refused(what: str) -> None:
    op, arguments, error, argument = changed(what)
    given = on(DEVICE, arguments)
    refused(lambda: getattr(torch.ops.rhovae, f"triton_{op}")(*given), error, f"triton_{op}", argument)


@pytest.mark.parametrize("kind", ["step", "row"])
@pytest.mark.parametrize(("lead", "d"), [((0,), 1), ((0, 3), 2), ((2,), 1)], ids=str)
def test_empty(lead: tuple[int, ...], d: int, kind: str) -> None:
    check_every_function("triton", DEVICE, lead, d, kind)
