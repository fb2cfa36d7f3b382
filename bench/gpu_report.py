"""Everything a machine with a GPU can say, offline and with the torch it has, in under nine minutes.

Builds a copy of the sources for the GPU's own architecture, runs the tests with `cuda` among the devices,
compute-sanitizer over every kernel, then the benchmark; writes bench/results/<gpu>-<date>.{json,md,png}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "gpu"
# Seconds that each step may take: together under nine minutes.
BUILD, TESTS, SANITIZER, BENCHMARK = 150, 150, 40, 150


def copy_sources() -> None:
    """The sources without built modules: those belong to another torch."""
    if COPY.exists():
        shutil.rmtree(COPY)
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "__pycache__", ".*_cache", "runs")
    shutil.copytree(ROOT, COPY, ignore=ignore)


def run(
    name: str, command: list[str], seconds: int, environment: dict[str, str], says: str
) -> dict[str, Any]:
    """One step: how it ended, and the last line of its output that matches `says`."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=COPY,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        code = -1
    except FileNotFoundError:
        output, code = "", -2
    took = time.monotonic() - start
    print(output[-6000:], flush=True)
    ended = {0: "done", -1: f"not finished within {seconds} s", -2: f"{command[0]} is not installed"}
    outcome = ended.get(code, f"failed with code {code}")
    matching = [line.strip(" =") for line in output.splitlines() if re.search(says, line)]
    if matching:
        outcome += f"; {matching[-1]}"
    return {"name": name, "command": command, "code": code, "seconds": took, "outcome": outcome}


def main() -> None:
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "gpu-report: this Python has no torch. Run: make gpu-report PYTHON=python3.12"
        ) from None
    if not torch.cuda.is_available():
        raise SystemExit("gpu-report: torch sees no GPU. `make cuda-check` needs none.")
    major, minor = torch.cuda.get_device_capability()
    copy_sources()
    python = sys.executable
    vectors = os.environ.get("RHOVAE_VECTORS", str(ROOT.parent / "shared" / "vectors"))
    environment = {"PYTHONPATH": f"{COPY}:{COPY / 'python'}", "RHOVAE_VECTORS": vectors}
    build = {"RHOVAE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", **environment}
    compiling = [python, "setup.py", "build_ext", "--inplace"]
    steps = [run("build", compiling, BUILD, build, "rhovae-ext: building")]
    if steps[0]["code"] == 0:
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        if importlib.util.find_spec("xdist"):
            tests += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        tests += ["tests/cuda", "tests/ext", "tests/triton"]
        steps.append(
            run(
                "tests on cuda and the CPU",
                tests,
                TESTS,
                {**environment, "OMP_NUM_THREADS": "2"},
                r"\d+ (passed|failed)",
            )
        )
        for tool in ("memcheck", "racecheck"):
            check = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
            check += [python, "-m", "bench.gpu_exercise"]
            steps.append(run(tool, check, SANITIZER, environment, "SUMMARY"))
        told = COPY / "steps.json"
        told.write_text(json.dumps(steps))
        results = ROOT / "bench" / "results"
        benchmark = [python, "-m", "bench.gpu", "--steps", str(told), "--out", str(results)]
        steps.append(run("benchmark", benchmark, BENCHMARK, environment, r"wrote .*md"))
    for step in steps:
        print(f"{step['name']}: {step['outcome']} ({step['seconds']:.0f} s)")
    sys.exit(any(step["code"] for step in steps))


if __name__ == "__main__":
    main()
