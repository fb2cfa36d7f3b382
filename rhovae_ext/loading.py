"""Loads the compiled module; where that cannot be, says why, and the command that puts it right."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterable
from functools import cache
from importlib import machinery, metadata
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
# pip keeps a wheel that it has built of an archive, and hands it on to environments with another torch.
_BUILD = "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps"

# What tells two torches apart, the plainest first.
_TORCHES = (
    "torch {torch}",
    "torch {torch} of commit {torch_commit:.9}",
    "torch {torch} with _GLIBCXX_USE_CXX11_ABI={cxx11_abi}",
)


def load(ops: Iterable[str]) -> str | None:
    """Imports the compiled module, which registers `ops`; the reason where that cannot be."""
    found = sorted(path for pattern in ("_C*.so", "_C*.pyd") for path in _FOLDER.glob(pattern))
    names = ", ".join(path.name for path in found)
    loadable = [path for path in found if path.name in {f"_C{end}" for end in machinery.EXTENSION_SUFFIXES}]
    if len(loadable) > 1:
        return f"several compiled modules lie in {_FOLDER} ({names}). {remedy('Remove them and build it')}"
    try:
        importlib.import_module(f"{__package__}._C")
    except ImportError as error:
        if not found:
            return f"the compiled module is not there. {remedy('Build it')}"
        if not loadable:
            return f"the compiled module was built for another Python ({names}). {remedy()}"
        return f"the compiled module {_why_not_loaded(loadable[0], error)} ({error}). {remedy()}"
    built = build_info()
    if _series(built["torch"]) != _series(torch.__version__):
        return f"the compiled module {_other_torch(built)}. {remedy()}"
    lacking = ", ".join(op for op in ops if not hasattr(torch.ops.rhovae, op))
    if lacking:
        return f"the compiled module is older than these sources (it has no {lacking}). {remedy()}"
    return None


def build_info() -> dict[str, Any]:
    """What the compiled module was built with; raises AttributeError where it is not loaded."""
    info: dict[str, Any] = json.loads(torch.ops.rhovae.build_info())
    return info


def build_record(library: Path) -> dict[str, Any]:
    """The same, read from a compiled module's file, which need not be loadable; empty where it has none."""
    found = re.search(rb'\{"torch": "[^\0]*\}', library.read_bytes())
    record: dict[str, Any] = json.loads(found[0]) if found else {}
    return record


@cache
def rebuild() -> str:
    """The command that builds the compiled module anew, from where this copy of the package came."""
    sources = _FOLDER.parent
    if (sources / "setup.py").is_file():
        return f"{_BUILD} --editable {shlex.quote(str(sources))}"
    return f"{_BUILD} {_origin() or '.'}"


def remedy(verb: str = "Rebuild it", environment: str = "") -> str:
    """What to do and the command for it; `environment` is put before."""
    command = rebuild()
    where = " in the folder of the sources" if command.endswith(" .") else ""
    return f"{verb}{where}: {environment}{command}"


def _origin() -> str | None:
    """The folder, archive or repository that pip built this copy from; None where that is not known."""
    for found in metadata.distributions(name="rhovae-ext"):
        if Path(str(found.locate_file(_FOLDER.name))) != _FOLDER:
            continue
        text = found.read_text("direct_url.json")
        if text is None:  # from an index
            return f"--no-binary rhovae-ext rhovae-ext=={found.version}"
        given = json.loads(text)
        url = str(given["url"])
        if url.endswith(".whl"):
            return None
        if "vcs_info" in given:
            url = f"{given['vcs_info']['vcs']}+{url}@{given['vcs_info']['commit_id']}"
        return shlex.quote(url)
    return None


def _series(version: str) -> str:
    """Versions of one series run each other's modules; before a release every one is a series of its own."""
    release = re.fullmatch(r"(\d+\.\d+)[\d.]*(\+.*)?", version)
    return release[1] if release else version


def _other_torch(record: dict[str, Any]) -> str | None:
    """What was another torch when the module was built; None where that was the running one."""
    running = {
        "torch": torch.__version__,
        "torch_commit": str(torch.version.git_version),
        "cxx11_abi": int(torch.compiled_with_cxx11_abi()),
    }
    for torch_of in _TORCHES:
        # What an older record does not hold is taken to be the same.
        built_for, now = torch_of.format(**running | record), torch_of.format(**running)
        if built_for != now:
            return f"was built for {built_for}, but {now} is running"
    return None


def _why_not_loaded(library: Path, error: ImportError) -> str:
    try:
        record = build_record(library)
    except (OSError, ValueError):
        record = {}
    other = _other_torch(record)
    if not record or (other is None and "undefined symbol" in str(error)):
        return "is damaged or cannot be read"
    return other or "cannot be loaded"
