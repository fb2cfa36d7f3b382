"""Which backend serves a call, what is said when one is missing, and what is said only once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rhovae_ext
from rhovae_ext import backends, loading, native

ROOT = Path(__file__).resolve().parents[2]
MU = torch.zeros(2, 3)


def test_every_backend_is_listed_with_a_reason_where_missing() -> None:
    for device in ("cpu", "cuda", "mps"):
        listed = rhovae_ext.available_backends(device)
        assert tuple(listed) == ("native", "triton", "reference")
        assert listed["reference"] is None
        assert all(reason is None or len(reason) > 20 for reason in listed.values())


def test_auto_takes_native_on_the_cpu() -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    assert backends.choose("test", None, MU) is backends.choose("test", "native", MU)
    assert backends.choose("test", "auto", MU) is not backends.choose("test", "reference", MU)


def test_an_explicit_choice_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", "it was not built. Run: pip install")
    with pytest.raises(RuntimeError, match=r"ar1_kl: backend 'native' is not available: it was not built"):
        rhovae_ext.ar1_kl(MU, 1.0, 0.0, backend="native")
    with pytest.raises(RuntimeError, match=r"ar1_kl: backend 'triton' is not available: .*it was not built"):
        rhovae_ext.ar1_kl(MU, 1.0, 0.0, backend="triton")


def test_cuda_tensors_name_the_build_that_serves_them() -> None:
    reason = rhovae_ext.available_backends("cuda")["native"]
    if reason is None:
        pytest.skip("this build serves CUDA")
    if native.unavailable is None:
        assert "without CUDA" in reason
        assert f"RHOVAE_CUDA=1 {loading.rebuild()}" in reason


_USE = """
import sys
import warnings
import torch
# An editable install would serve the compiled module from the sources.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import rhovae_ext
    for _ in range(3):
        z = rhovae_ext.ar1_reparam(torch.zeros(2, 3), 1.0, 0.5, key=(1, 2))
    rhovae_ext.ar1_reparam(torch.zeros(2, 3), 1.0, 0.5)
print(len(caught), *{str(w.message) + " @ " + str(w.filename) for w in caught})
"""


def test_a_missing_module_is_said_once(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(ROOT / "rhovae_ext", tmp_path / "rhovae_ext", ignore=without)
    ran = subprocess.run(
        [sys.executable, "-P", "-c", _USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = ran.stdout
    assert said.startswith("1 "), said
    assert "no fused kernels for cpu tensors" in said
    assert "the compiled module is not there" in said
    assert "pip install" in said
    assert "@ <string>" in said, "the warning points at the caller's line"


def test_importing_the_library_does_not_import_the_compiler() -> None:
    program = "import sys, torch, rhovae_ext; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_constant_while_tracing_is_marked_as_torch_marks_it() -> None:
    def function() -> None: ...

    assert torch.compiler.assume_constant_result(function) is function
    marks = dict(vars(function))
    assert marks
    for marked in (backends._triton_missing, backends._warn_once):
        assert vars(marked) == marks
