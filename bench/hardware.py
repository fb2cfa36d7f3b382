"""The machine and the versions a figure belongs to."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy
import torch

import rhovae_ext


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def capability() -> str:
    """The instruction set the compiled kernels run with, "none" without them."""
    try:
        return str(torch.ops.rhovae.cpu_capability())
    except AttributeError:
        return "none"


def build() -> dict[str, Any]:
    try:
        return dict(json.loads(torch.ops.rhovae.build_info()))
    except AttributeError:
        return {}


def describe() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "instruction_set": capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "rhovae_ext": rhovae_ext.__version__,
        "build": build(),
    }


def host_class(hardware: dict[str, Any]) -> str:
    """A short name for machines of this kind, for file names: intel-xeon-avx512-2core."""
    model = re.sub(r"\(.*?\)|@.*|\b(CPU|Processor|[0-9]+-Core)\b", " ", hardware["cpu"])
    words = re.findall(r"[a-z0-9]+", model.lower())
    return "-".join([*words, hardware["instruction_set"], f"{hardware['cores']}core"])
