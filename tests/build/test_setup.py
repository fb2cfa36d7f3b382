"""The build's decisions, and its messages where it cannot go on, as a user meets them."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "pip install --no-build-isolation ."


@pytest.fixture(scope="module")
def build() -> SimpleNamespace:
    """setup.py's functions, without running setup()."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py"), run_name="setup"))


def run_setup(tmp_path: Path, *, modules: dict[str, str] | None = None, **environment: str) -> str:
    """What `setup.py dist_info` (pip's first step) prints when it refuses; `modules` shadow real ones."""
    for name, text in (modules or {}).items():
        (tmp_path / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "setup.py", "dist_info", "--output-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("rhovae-ext cannot be built") == 1
    return done.stderr


def torch_without_anything(version: str, cuda: str | None) -> dict[str, str]:
    return {"torch": f"class version:\n    cuda = {cuda!r}\n__version__ = {version!r}\n"}


def test_without_torch_says_how_to_install(tmp_path: Path) -> None:
    said = run_setup(tmp_path, modules={"torch": 'raise ImportError("No module named torch")'})
    assert "torch cannot be imported" in said
    assert "pip install torch 'setuptools>=77' ninja" in said
    assert INSTALL in said


@pytest.mark.parametrize("version", ["1.13.1", "2.10.0+cu128", "2.16.0"])
def test_torch_out_of_range_names_both(tmp_path: Path, version: str) -> None:
    said = run_setup(tmp_path, modules=torch_without_anything(version, None))
    assert f"torch {version} is installed, torch>=2.11,<2.16 is supported" in said
    assert "pip install 'torch>=2.11,<2.16'" in said


def test_missing_compiler_is_named(tmp_path: Path) -> None:
    said = run_setup(tmp_path, modules=torch_without_anything("2.13.0", None), CXX="no-such-compiler")
    assert "CXX=no-such-compiler" in said
    assert "apt install g++" in said


def test_no_compiler_at_all(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CXX": ""}
    said = run_setup(tmp_path, modules=torch_without_anything("2.13.0", None), **environment)
    assert "no C++ compiler (c++, g++, clang++) was found" in said


def test_cuda_wanted_with_a_cpu_torch(tmp_path: Path) -> None:
    said = run_setup(tmp_path, modules=torch_without_anything("2.13.0+cpu", None), RHOVAE_CUDA="1")
    assert "RHOVAE_CUDA=1, but torch 2.13.0+cpu is built without CUDA" in said
    assert "Install a CUDA build of torch" in said


def test_unknown_wish_is_refused(tmp_path: Path) -> None:
    said = run_setup(tmp_path, modules=torch_without_anything("2.13.0", None), RHOVAE_CUDA="yes")
    assert "RHOVAE_CUDA='yes' is neither 0 nor 1" in said


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "nvcc", "sources", "cuda", "reason"),
    [
        ("", None, None, 3, False, "built without CUDA"),
        ("", "13.0", None, 3, False, "nvcc is not in CUDA_HOME"),
        ("", "13.0", "12.4", 3, False, "nvcc 12.4 does not match torch's CUDA 13.0"),
        ("", "13.0", "13.1", 0, False, "csrc/cuda is empty"),
        ("", "13.0", "13.1", 3, True, "torch has CUDA 13.0 and nvcc is 13.1"),
        ("0", "13.0", "13.1", 3, False, "RHOVAE_CUDA=0"),
        ("1", "13.0", "13.1", 3, True, "RHOVAE_CUDA=1"),
    ],
)
def test_decision_and_reason(
    build: SimpleNamespace,
    wanted: str,
    torch_cuda: str | None,
    nvcc: str | None,
    sources: int,
    cuda: bool,
    reason: str,
) -> None:
    decision = build.decide(wanted, "2.13.0", torch_cuda, nvcc, sources)
    assert decision.cuda is cuda
    assert reason in decision.reason
    assert str(decision).startswith("cuda: " if cuda else "cpu: ")


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "sources", "problem"),
    [
        (None, "13.1", 3, "built without CUDA"),
        ("13.0", None, 3, "nvcc is not in CUDA_HOME, on PATH or in /usr/local/cuda"),
        ("13.0", "12.4", 3, "does not match"),
        ("13.0", "13.1", 0, "no CUDA sources"),
    ],
)
def test_forced_cuda_is_never_dropped_silently(
    build: SimpleNamespace, torch_cuda: str | None, nvcc: str | None, sources: int, problem: str
) -> None:
    with pytest.raises(SystemExit, match=problem) as refusal:
        build.decide("1", "2.13.0", torch_cuda, nvcc, sources)
    assert INSTALL in str(refusal.value)


def make_toolkit(home: Path, *, headers: bool) -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.80'\n")
    (home / "bin" / "nvcc").chmod(0o755)
    if headers:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
    return home


def test_toolkit_with_headers_wins_over_a_wrapper_on_path(
    build: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = make_toolkit(tmp_path / "wrapper", headers=False)
    whole = make_toolkit(tmp_path / "whole", headers=True)
    monkeypatch.setenv("PATH", str(wrapper / "bin"))
    monkeypatch.setenv("CUDA_PATH", str(whole))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert build.find_toolkit("13") == whole
    assert build.nvcc_version(whole) == "13.1"


def test_architectures_are_the_users_or_reach_from_8_to_12(
    build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build.architectures("13.0") == "9.0"
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert build.architectures("13.0") == "8.0;9.0;10.0;12.0+PTX"
    assert build.architectures("12.6") == "8.0;9.0+PTX"


def test_range_of_torch_is_that_of_the_metadata(build: SimpleNamespace) -> None:
    stated = re.search(r'"torch>=(\d+)\.(\d+),<(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert stated is not None
    numbers = tuple(map(int, stated.groups()))
    assert (numbers[:2], numbers[2:]) == (build.TORCH_FROM, build.TORCH_BELOW)


def test_source_archive_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise ImportError("No module named torch")')
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_compiled_module_tells_what_it_was_built_for() -> None:
    import json

    torch = pytest.importorskip("torch")
    pytest.importorskip("rhovae_ext._C", reason="the compiled module is not built: make build")
    info: dict[str, Any] = json.loads(torch.ops.rhovae.build_info())
    assert torch.__version__ in json.dumps(info)
