"""The build's decisions, and its messages where it cannot go on, as a user meets them."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

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


def requirements_said(tmp_path: Path, command: list[str], **environment: str) -> list[str]:
    """What `setup.py command` writes of the packages that have to be installed."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (written,) = [*tmp_path.rglob("PKG-INFO"), *tmp_path.rglob("METADATA")]
    said = Parser().parsestr(written.read_text())
    assert "requires-dist" in said.get_all("Dynamic", [])
    return [one for one in said.get_all("Requires-Dist", []) if "extra ==" not in one]


def test_a_source_archive_needs_no_torch_and_takes_every_series(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise ImportError("No module named torch")')
    said = requirements_said(tmp_path, ["egg_info", "--egg-base", str(tmp_path)], PYTHONPATH=str(tmp_path))
    assert said == ["torch<2.16,>=2.11", "numpy>=1.26"]


def test_what_is_compiled_asks_for_the_series_compiled_for(build: SimpleNamespace, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    said = requirements_said(tmp_path, ["dist_info", "--output-dir", str(tmp_path)], RHOVAE_CUDA="0")
    asked = Requirement(said[0])
    assert asked.name == "torch"
    assert asked.specifier.contains(torch.__version__, prereleases=True)
    assert str(asked) == str(Requirement(build.torch_requirement(torch.__version__)))


@pytest.mark.parametrize(
    ("built_for", "taken", "refused"),
    [
        (
            "2.13.0+cpu",
            ["2.13.0+cu130", "2.13.0", "2.13.1"],
            ["2.12.1", "2.14.0", "2.14.0rc1", "3.13.0"],
        ),
        ("2.14.0.dev20261101+cu130", ["2.14.0.dev20261101"], ["2.14.0.dev20261102", "2.14.0", "2.13.0"]),
        ("2.14.0a0+gitabcdef", ["2.14.0a0+gitabcdef"], ["2.14.0", "2.14.0a1"]),
    ],
)
def test_series_of_a_torch(
    build: SimpleNamespace, built_for: str, taken: list[str], refused: list[str]
) -> None:
    asked = Requirement(build.torch_requirement(built_for))
    assert [v for v in taken + refused if asked.specifier.contains(v, prereleases=True)] == taken


def test_pip_tells_that_another_torch_is_beside_it(build: SimpleNamespace, tmp_path: Path) -> None:
    asked = build.torch_requirement("2.13.0+cpu")
    for name, version, requires in (
        ("rhovae-ext", "0.1.0", f"Requires-Dist: {asked}\n"),
        ("torch", "2.14.1", ""),
    ):
        information = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{requires}"
        )
    said = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "rhovae-ext 0.1.0 has requirement torch<2.14,>=2.13, but you have torch 2.14.1." in said


def test_what_an_earlier_build_left_is_removed(
    build: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["_C.abi3.so", "_C.cpython-311-x86_64-linux-gnu.so", "_C.cpython-27.so", "native.py", "other.so"]
    for name in names:
        (tmp_path / name).touch()
    build.remove_others(tmp_path / "_C.abi3.so")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_C.abi3.so", "native.py", "other.so"]
    assert f"removing {tmp_path / '_C.cpython-311-x86_64-linux-gnu.so'}" in capsys.readouterr().out


def test_first_python_is_that_of_the_metadata(build: SimpleNamespace) -> None:
    assert 'requires-python = ">={}.{}"'.format(*build.PYTHON_FROM) in (ROOT / "pyproject.toml").read_text()


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm (binutils)")
def test_the_module_asks_python_for_one_function_of_its_stable_abi() -> None:
    pytest.importorskip("rhovae_ext._C", reason="the compiled module is not built: make build")
    module = importlib.import_module("rhovae_ext._C")
    assert module.__file__ is not None
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert module.__file__.endswith("_C.abi3.so")
    said = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", module.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r" U (_?Py\w*)", said) == ["PyModule_Create2"]


def test_compiled_module_tells_what_it_was_built_for() -> None:
    import json

    torch = pytest.importorskip("torch")
    pytest.importorskip("rhovae_ext._C", reason="the compiled module is not built: make build")
    info: dict[str, Any] = json.loads(torch.ops.rhovae.build_info())
    assert torch.__version__ in json.dumps(info)
