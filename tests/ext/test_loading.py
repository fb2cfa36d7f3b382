"""The compiled module that does not fit: what is wrong with it, in one sentence, and the command that helps.

Each test loads a copy of the real module, or what is left of it, as the module of a package of its own.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import machinery
from pathlib import Path

import pytest
import torch

from rhovae_ext import loading, native

ROOT = Path(__file__).resolve().parents[2]
BUILD = "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps"
SYMBOL = b"_ZN3c1010Dispatcher13realSingletonEv"
STRANGE_SYMBOL = (SYMBOL, SYMBOL[:-3] + b"XXX")

Load = Callable[[dict[str, bytes]], str | None]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load() of a package in tmp_path that has these files beside it."""

    def of(files: dict[str, bytes]) -> str | None:
        package = tmp_path / f"copy_{abs(hash(tmp_path))}"
        package.mkdir()
        shutil.copy(ROOT / "rhovae_ext" / "loading.py", package)
        for name, content in files.items():
            (package / name).write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)
        copy = importlib.import_module(f"{package.name}.loading")
        said: str | None = copy.load(())
        return said

    return of


@pytest.fixture(scope="module")
def module() -> tuple[str, bytes]:
    """The real module's name and content."""
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    (library,) = (ROOT / "rhovae_ext").glob("_C*.so")
    return library.name, library.read_bytes()


def changed(content: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for old, new in changes:
        assert old in content
        assert len(old) == len(new)
        content = content.replace(old, new)
    return content


def test_none_is_there(load: Load) -> None:
    assert load({}) == (f"the compiled module is not there. Build it in the folder of the sources: {BUILD} .")


def test_another_python(load: Load, module: tuple[str, bytes]) -> None:
    said = load({"_C.cpython-27-x86_64-linux-gnu.so": module[1]})
    assert said is not None
    assert "built for another Python (_C.cpython-27-x86_64-linux-gnu.so)" in said
    assert BUILD in said


def test_one_for_every_python_beside_an_old_one(load: Load) -> None:
    mine, every = machinery.EXTENSION_SUFFIXES[0], ".abi3.so"
    said = load({f"_C{mine}": b"", f"_C{every}": b""})
    assert said is not None
    assert "several compiled modules lie in " in said
    assert f"(_C{every}, _C{mine})" in said
    assert BUILD in said


def test_an_older_one_than_the_sources() -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    assert loading.load(native._FAKE) is None
    said = loading.load((*native._FAKE, "an_op_of_tomorrow"))
    assert said is not None
    assert "older than these sources (it has no an_op_of_tomorrow)" in said
    assert BUILD in said


def test_another_series_that_loads_all_the_same(tmp_path: Path, module: tuple[str, bytes]) -> None:
    """In a process of its own: its ops are registered before the series is known."""
    name, content = module
    built_for = loading.build_info()["torch"]
    other = "1" + built_for[1:]
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(ROOT / "rhovae_ext" / "loading.py", package)
    record = b'{"torch": "'
    (package / name).write_bytes(changed(content, (record + built_for.encode(), record + other.encode())))
    said = subprocess.run(
        [sys.executable, "-P", "-c", "import package.loading; print(package.loading.load(()))"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"was built for torch {other}, but torch {torch.__version__} is running. Rebuild" in said
    assert BUILD in said


def test_a_symbol_that_another_build_of_the_same_number_lacks(load: Load, module: tuple[str, bytes]) -> None:
    name, content = module
    built_for = loading.build_info()["torch"]
    other = built_for[:-1] + "~"  # as cu130 beside cpu
    said = load(
        {name: changed(content, STRANGE_SYMBOL, (b'"' + built_for.encode() + b'"', f'"{other}"'.encode()))}
    )
    assert said is not None
    assert f"built for torch {other}, but torch {torch.__version__} is running" in said
    assert "undefined symbol" in said


@pytest.mark.parametrize(
    ("field", "other", "told"),
    [
        ("torch_commit", "0123456789", "of commit 012345678"),
        ("cxx11_abi", "7", "with _GLIBCXX_USE_CXX11_ABI=7"),
    ],
)
def test_a_symbol_that_another_build_of_the_same_version_lacks(
    load: Load, module: tuple[str, bytes], field: str, other: str, told: str
) -> None:
    name, content = module
    recorded = str(loading.build_info()[field])
    start = f'"{field}": ' + ('"' if field == "torch_commit" else "")
    other = (other + recorded)[: len(recorded)]
    said = load(
        {name: changed(content, STRANGE_SYMBOL, ((start + recorded).encode(), (start + other).encode()))}
    )
    assert said is not None
    version = torch.__version__
    assert f"built for torch {version} {told}, but torch {version} " in said
    assert "undefined symbol" in said


def test_a_symbol_that_this_very_torch_lacks(load: Load, module: tuple[str, bytes]) -> None:
    name, content = module
    said = load({name: changed(content, STRANGE_SYMBOL)})
    assert said is not None
    assert "the compiled module is damaged or cannot be read" in said
    assert "undefined symbol" in said
    assert "built for" not in said
    assert BUILD in said


@pytest.mark.parametrize("left", [0, 50])
def test_a_file_that_breaks_off(load: Load, module: tuple[str, bytes], left: int) -> None:
    name, content = module
    said = load({name: content[:left]})
    assert said is not None
    assert "the compiled module is damaged or cannot be read (" in said
    assert BUILD in said


def test_a_library_that_is_missing(load: Load, module: tuple[str, bytes]) -> None:
    name, content = module
    said = load({name: changed(content, (b"libtorch_cpu.so", b"libtorch_cpX.so"))})
    assert said is not None
    assert "the compiled module cannot be loaded (libtorch_cpX.so" in said
    assert BUILD in said


def test_the_record_in_the_file_is_what_the_module_says(module: tuple[str, bytes]) -> None:
    assert loading.build_record(ROOT / "rhovae_ext" / module[0]) == loading.build_info()


@pytest.mark.parametrize(
    ("ours", "fits"),
    [
        ("2.13.0+cpu", ["2.13.0+cu130", "2.13.1", "2.13"]),
        ("2.14.0.dev20261101+cpu", ["2.14.0.dev20261101+cpu"]),
        ("2.14.0a0+gitabc", ["2.14.0a0+gitabc"]),
    ],
)
def test_a_series_is_its_releases_and_a_nightly_is_alone(ours: str, fits: list[str]) -> None:
    every = {"2.12.1", "2.13", "2.13.0+cu130", "2.13.1", "2.14.0", "2.14.0rc1", "2.14.0a0+gitabc", "3.13.0"}
    every |= {"2.14.0.dev20261101+cpu", "2.14.0.dev20261102+cpu"}
    assert {one for one in every if loading._series(one) == loading._series(ours)} == set(fits)


# How a copy of the package can have come here, as pip notes it: its direct_url.json, and what builds it anew.
_ARCHIVE = {"archive_info": {"hashes": {"sha256": "0" * 64}}}
_ORIGINS = {
    "folder": ({"url": "file:///home/me/rhovae", "dir_info": {}}, "file:///home/me/rhovae"),
    "archive": ({"url": "file:///a/rhovae_ext-0.1.0.tar.gz"} | _ARCHIVE, "file:///a/rhovae_ext-0.1.0.tar.gz"),
    "wheel": ({"url": "file:///a/rhovae_ext-0.1.0-cp310-abi3-linux_x86_64.whl"} | _ARCHIVE, "."),
    "repository": (
        {"url": "https://host/rhovae.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
        "git+https://host/rhovae.git@abc123",
    ),
    "index": (None, "--no-binary rhovae-ext rhovae-ext==0.1.0"),
}


@pytest.mark.parametrize("origin", _ORIGINS)
def test_the_remedy_is_for_the_way_it_came(load: Load, tmp_path: Path, origin: str) -> None:
    noted, remedy = _ORIGINS[origin]
    information = tmp_path / "rhovae_ext-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: rhovae-ext\nVersion: 0.1.0\n")
    if noted is not None:
        (information / "direct_url.json").write_text(json.dumps(noted))
    said = load({})
    assert said is not None
    assert said.endswith(f": {BUILD} {remedy}")
    assert ("in the folder of the sources" in said) == (remedy == ".")


def test_the_remedy_in_a_folder_of_sources(load: Load, tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    said = load({})
    assert said is not None
    assert said.endswith(f"{BUILD} --editable {shlex.quote(str(tmp_path))}")
