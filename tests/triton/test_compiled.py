"""What needs Triton's compiler and no GPU: machine code, torch.compile's graphs, compilations counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> list[Any]:
    """The JSON lines that a program prints where Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def traced(available: None) -> Any:
    return run("-m", "tests.triton.without_a_gpu")[0]


def test_torch_compile_sees_the_launches(traced: Any) -> None:
    """One launch for a sample with its KL, one for both gradients; before them those of long rows' chunks."""
    expected = {"short": (2, 2), "dynamic": (2, 2), "long": (3, 4)}
    for name, (forward, backward) in expected.items():
        calls = traced["graphs"][name]
        assert not [call for graph in calls.values() for call in graph if "rhovae" in call], "an opaque op"
        launches = {
            part: sum("triton_kernel_wrapper" in call for call in graph) for part, graph in calls.items()
        }
        assert launches == {"forward": forward, "backward": backward}, name


def test_compilations_are_few(traced: Any) -> None:
    """At most two for each length of a tile: rows aligned to 16 bytes or not."""
    counts = traced["compilations"]
    print(counts)
    assert set(counts) == {"forward", "backward"}
    assert max(counts.values()) <= 20


def test_no_local_memory(available: None) -> None:
    """float32 on both generations: nothing spilt, nothing on the stack."""
    rows = run("-m", "bench.triton_code", "--json", "--lengths", "256", "5000", "--targets", "90")
    rows += run(
        "-m", "bench.triton_code", "--json", "--lengths", "256", "--targets", "80", "--parameters", "row"
    )
    print(
        f"\n{'sm':<4}{'kernel':<20}{'d':>6} {'params':<7}{'regs':>5}{'spills':>8}{'instructions/element':>22}"
    )
    for row in rows:
        print(
            f"{row['target']:<4}{row['kernel']:<20}{row['d']:>6} {row['parameters']:<7}{row['registers']:>5}"
            f"{row['spills']:>8}{row['instructions_per_element']:>22}"
        )
    assert {row["kernel"] for row in rows} == {
        "forward",
        "totals",
        "backward",
        "adjoint_totals",
        "log_prob",
        "log_prob_backward",
    }
    for row in rows:
        assert row["spills"] == 0, row
        assert row["stack"] == 0, row
    # A memory-bound kernel has 62 issue slots an element on sm_90.
    (forward,) = (
        r for r in rows if (r["target"], r["kernel"], r["d"], r["parameters"]) == (90, "forward", 256, "row")
    )
    assert forward["instructions_per_element"] <= 62


@pytest.mark.parametrize(("maker", "kernels"), [("cuda", 26), ("hip", 14)])
def test_every_option_compiles(available: None, maker: str, kernels: int) -> None:
    """For NVIDIA and AMD: what the interpreter takes, a compiler may not."""
    assert run("-m", "tests.triton.every_option", maker) == [{"compiled": kernels}]
