"""What is installed, how it was built and what it can do on this machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata

import torch

import rhovae_ext
from rhovae.data import FASHION_MNIST_DIR

_OPTIONAL = ("lightning", "tensorboard", "matplotlib", "scikit-learn", "pyyaml", "triton")


def report() -> str:
    """Lines of ``name: value`` for a person, or for a bug report."""
    lines = [
        f"python       {platform.python_version()} on {platform.platform()}",
        f"rhovae-ext   {rhovae_ext.__version__}",
        f"torch        {torch.__version__} (CUDA {torch.version.cuda or 'not built in'})",
        f"cpu          {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        f"instructions {_instruction_set()}",
        f"gpu          {_gpus()}",
        f"gpu driver   {_driver()}",
        f"build        {_build()}",
        "backends",
    ]
    for name, reason in rhovae_ext.available_backends().items():
        lines.append(f"  {name:<10} {'available' if not reason else 'missing: ' + str(reason)}")
    if torch.cuda.is_available():
        reason = rhovae_ext.available_backends("cuda")["native"]
        lines.append(f"  on cuda    {'native' if not reason else 'native missing: ' + str(reason)}")
    lines.append("optional packages (pip install 'rhovae-ext[train]')")
    for package in _OPTIONAL:
        lines.append(f"  {package:<14} {_version(package)}")
    found = "found" if FASHION_MNIST_DIR.is_dir() else "missing: apt-get install dataset-fashion-mnist"
    lines.append(f"fashion-mnist {FASHION_MNIST_DIR} {found}")
    return "\n".join(lines)


def _instruction_set() -> str:
    try:
        return f"{torch.ops.rhovae.cpu_capability()} (RHOVAE_CPU_CAPABILITY forces another)"
    except (AttributeError, RuntimeError):
        return "unknown: the compiled module is not loaded"


def _build() -> str:
    try:
        info = json.loads(torch.ops.rhovae.build_info())
    except (AttributeError, RuntimeError):
        return "the compiled module is not loaded"
    return ", ".join(f"{name} {value}" for name, value in info.items() if value not in ("", None))


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none visible"
    found = []
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        found.append(f"{torch.cuda.get_device_name(i)} (compute capability {major}.{minor})")
    return ", ".join(found)


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no nvidia-smi on PATH"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return f"nvidia-smi failed: {error}"
    return ", ".join(dict.fromkeys(printed.split())) or "none"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
