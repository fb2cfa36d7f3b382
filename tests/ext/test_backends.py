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
from rhovae_ext import backends, native

ROOT = Path(__file__).resolve().parents[2]
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
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
    monkeypatch.setattr(native, "unavailable", f"it was not built. Run: {REBUILD}")
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
        assert f"RHOVAE_CUDA=1 {REBUILD}" in reason


def test_the_version_of_torch_is_in_the_module_itself() -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    (library,) = (ROOT / "rhovae_ext").glob("_C*.so")
    assert native.torch_built_for(library) == native.build_info()["torch"]
    assert native.cpu_capability() in ("avx512", "avx2", "portable")


def test_a_module_older_than_the_sources_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    monkeypatch.setitem(native._FAKE, "an_op_of_tomorrow", native._ar1)
    reason = native._load()
    assert reason is not None
    assert "older than these sources (it has no an_op_of_tomorrow)" in reason
    assert REBUILD in reason


def _copy(folder: Path, library: str | None = None, change: tuple[bytes, bytes] | None = None) -> None:
    """The package in a folder of its own, with or without a compiled module."""
    package = folder / "rhovae_ext"
    shutil.copytree(ROOT / "rhovae_ext", package, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if library is not None:
        (source,) = (ROOT / "rhovae_ext").glob("_C*.so")
        content = source.read_bytes()
        if change is not None:
            assert change[0] in content
            content = content.replace(*change)
        (package / library).write_bytes(content)


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


def _use(folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", _USE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_a_missing_module_is_said_once(tmp_path: Path) -> None:
    _copy(tmp_path)
    said = _use(tmp_path)
    assert said.startswith("1 "), said
    assert "no fused kernels for cpu tensors" in said
    assert "the compiled module is not there" in said
    assert REBUILD in said
    assert "@ <string>" in said, "the warning points at the caller's line"


@pytest.mark.skipif(native.unavailable is not None, reason="needs the compiled module")
class TestAModuleThatDoesNotFit:
    def test_another_torch(self, tmp_path: Path) -> None:
        built_for = native.build_info()["torch"]
        record = b'{"torch": "'
        (library,) = (ROOT / "rhovae_ext").glob("_C*.so")
        other = b"1" + built_for.encode()[1:]
        _copy(tmp_path, library.name, (record + built_for.encode(), record + other))
        said = _use(tmp_path)
        assert said.startswith("1 "), said
        assert f"built for torch {other.decode()}, but torch {torch.__version__} is running" in said
        assert REBUILD in said

    def test_an_undefined_symbol(self, tmp_path: Path) -> None:
        (library,) = (ROOT / "rhovae_ext").glob("_C*.so")
        name = b"_ZN3c1010Dispatcher13realSingletonEv"
        _copy(tmp_path, library.name, (name, name[:-3] + b"XXX"))
        said = _use(tmp_path)
        assert "undefined symbol" in said, said
        assert (
            f"built for torch {native.build_info()['torch']}, but torch {torch.__version__} is running"
            in said
        )
        assert REBUILD in said

    def test_another_python(self, tmp_path: Path) -> None:
        _copy(tmp_path, "_C.cpython-27-x86_64-linux-gnu.so")
        said = _use(tmp_path)
        assert "built for another Python (_C.cpython-27-x86_64-linux-gnu.so)" in said, said
        assert REBUILD in said
