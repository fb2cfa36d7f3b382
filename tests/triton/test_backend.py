"""When the backend serves, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import torch

import rhovae_ext
from rhovae_ext import backends, native
from rhovae_ext import triton as ours

ROOT = Path(__file__).resolve().parents[2]


def test_the_reason_names_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhovae_ext.triton import launch

    mu = torch.zeros(2, 3)

    def refusal() -> str:
        with pytest.raises(RuntimeError, match=r"ar1_kl: backend 'triton' is not available") as caught:
            rhovae_ext.ar1_kl(mu, 1.0, 0.0, backend="triton")
        return str(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr(launch, "INTERPRETED", False)
        assert "backend='native'" in refusal()
        assert "TRITON_INTERPRET=1" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(util, "find_spec", lambda _name: None)
        assert "triton is not installed: pip install 'triton" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda _name: "3.3.1")
        assert "triton 3.3.1 is installed, 3.4 to 3.9 are supported" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(native, "unavailable", "it was not built. Run: this")
        assert "it was not built. Run: this" in refusal()
    reason = ours.unavailable("mps")
    assert reason is not None
    assert "not mps" in reason
    if not torch.cuda.is_available():
        reason = ours.unavailable("cuda")
        assert reason is not None
        assert "sees no cuda device" in reason


def test_auto_takes_triton_where_the_compiled_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        is_cpu = False
        device = torch.device("cuda")

    missing = {"native": "built without CUDA", "triton": None, "reference": None}
    monkeypatch.setattr(backends, "_missing", lambda name, _device: missing[name])
    chosen = backends.choose("test", "auto", Cuda())  # type: ignore[arg-type]
    assert chosen.ar1 is torch.ops.rhovae.triton_ar1.default
    assert backends.choose("test", "auto", torch.zeros(1)).ar1 is torch.ops.rhovae.ar1.default


def test_float64_where_a_device_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhovae_ext.triton import rows

    class Properties:
        has_fp64 = False
        name = "a small GPU"

    class Tensor:
        device = torch.device("xpu", 0)
        dtype = torch.float64

    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _device: Properties())
    with pytest.raises(RuntimeError, match=r"a small GPU has no float64 .*float32"):
        rows.refuse_missing_double(Tensor())  # type: ignore[arg-type]
    Tensor.dtype = torch.float32
    rows.refuse_missing_double(Tensor())  # type: ignore[arg-type]


_IMPORT = """
import sys, torch, rhovae_ext
rhovae_ext.ar1_reparam(torch.zeros(2, 3), 1.0, 0.5)
print("rhovae_ext.triton" in sys.modules)
"""


def test_the_kernels_are_not_imported_before_they_are_asked_for() -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", _IMPORT], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
