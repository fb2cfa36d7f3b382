"""Backends and devices as parameters, and outputs that show when nobody wrote them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import rhovae_ext

BACKENDS = ("reference", "native")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
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
