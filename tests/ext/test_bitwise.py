"""The same numbers, bit for bit, over threads, splits of the batch and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import rhovae_ext
from rhovae_ext import native
from tests.ext.cases import Case, make_case, results
from tests.ext.compare import NOISE_TOLERANCE

ROOT = Path(__file__).resolve().parents[2]
KINDS = pytest.mark.parametrize("kinds", [("row", "row"), ("step", "step")], ids=["row", "step"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@KINDS
@DTYPES
@pytest.mark.parametrize(
    ("rows", "d", "samples"),
    [(64, 500, None), (1, 30_011, None), (1, 70_001, None), (3, 9000, 2), (3000, 10, None), (1023, 33, None)],
    ids=str,
)
def test_threads(
    backend: str,
    threads: Callable[[int], None],
    dtype: torch.dtype,
    kinds: tuple[str, str],
    rows: int,
    d: int,
    samples: int | None,
) -> None:
    case = make_case((rows,), d, *kinds, dtype, logits=True, key=(1, 2), num_samples=samples)
    dz, dkl = torch.ones_like(case.call(backend)[0]), torch.ones(rows)
    outputs = []
    for count in (1, 2, 1):
        threads(count)
        outputs.append(results(case, backend, dz, dkl))
    # The reference sums with torch's own reductions, whose order is torch's business.
    names = ("z", "kl", "dmu", "dscale", "drho") if backend == "native" else ("z",)
    for name in names:
        assert torch.equal(outputs[0][name], outputs[1][name]), f"{name} over threads"
        assert torch.equal(outputs[0][name], outputs[2][name]), f"{name} over runs"


def _rows(case: Case, start: int, stop: int) -> Case:
    def part(value: Tensor | float) -> Tensor | float:
        return value[start:stop] if isinstance(value, Tensor) and value.dim() > 0 else value

    options = {**case.options, "row_offset": case.options["row_offset"] + start}
    return Case(case.mu[start:stop], part(case.scale), part(case.rho), case.logits, options=options)


@KINDS
@DTYPES
@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("row_offset", [0, 7, 2**32 - 9, 2**63 - 4])
def test_batch_splits(
    backend: str, dtype: torch.dtype, kinds: tuple[str, str], num_samples: int | None, row_offset: int
) -> None:
    for d in (1, 10, 67, 300):
        case = make_case(
            (19,), d, *kinds, dtype, logits=True, key=(8, 9), num_samples=num_samples, row_offset=row_offset
        )
        whole, kl = case.call(backend)
        for cuts in ((0, 19), (0, 1, 19), (0, 5, 11, 19), tuple(range(20))):
            parts = [_rows(case, *cut).call(backend) for cut in pairwise(cuts)]
            assert torch.equal(torch.cat([z for z, _ in parts], dim=-2), whole), f"z, d = {d}, cuts {cuts}"
            if backend == "native":
                assert torch.equal(torch.cat([part for _, part in parts]), kl), f"kl, d = {d}, cuts {cuts}"


def test_samples_count_as_rows(backend: str) -> None:
    """With K samples row r, sample k is the row r K + k of a draw without samples."""
    for dtype in (torch.float32, torch.float64):
        mu = torch.zeros(4, 6, dtype=dtype)
        samples = rhovae_ext.ar1_reparam(
            mu, 1.0, 0.5, key=(3, 1), num_samples=5, row_offset=2, backend=backend
        )
        rows = rhovae_ext.ar1_reparam(
            mu.new_zeros(20, 6), 1.0, 0.5, key=(3, 1), row_offset=10, backend=backend
        )
        assert torch.equal(samples, rows.reshape(4, 5, 6).transpose(0, 1))


def test_counters_wrap_at_64_bits(backend: str) -> None:
    mu = torch.zeros(4, 9)
    last = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=(3, 1), row_offset=2**64 - 2, backend=backend)
    first = rhovae_ext.ar1_reparam(mu[:2], 1.0, 0.0, key=(3, 1), row_offset=0, backend=backend)
    assert torch.equal(last[2:], first)
    late = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=(3, 2**64 - 1), backend=backend)
    early = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=(3, 0), backend=backend)
    assert torch.equal(late[:, 4:], early[:, :5])


def test_rows_do_not_depend_on_their_parameters(backend: str) -> None:
    """A row's numbers are its own: another number of rows, or other rows' values, change nothing."""
    case = make_case((6,), 21, "step", "step", torch.float32, logits=True, key=(1, 1), row_offset=0)
    whole, _ = case.call(backend)
    others = _rows(case, 0, 6)
    others.mu[1:] = 100.0
    changed, _ = others.call(backend)
    assert torch.equal(whole[0], changed[0])


_DRAW = """
import sys, numpy, torch, rhovae_ext
from rhovae_ext import native
eps = [rhovae_ext.ar1_reparam(torch.zeros(7, 1025, dtype=dtype), 1.0, 0.0, key=(12, 3), backend="native")
       for dtype in (torch.float32, torch.float64)]
z, kl = rhovae_ext.ar1_reparam_kl(torch.ones(7, 1025), 0.7, 0.9, key=(12, 3), backend="native")
numpy.savez(sys.argv[1], eps32=eps[0], eps64=eps[1], z=z, kl=kl)
print(native.cpu_capability())
"""


def test_instruction_sets(tmp_path: Path) -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    drawn = {}
    for capability in ("portable", "avx2", "avx512"):
        target = tmp_path / f"{capability}.npz"
        ran = subprocess.run(
            [sys.executable, "-c", _DRAW, str(target)],
            env={**os.environ, "RHOVAE_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode == 0 and ran.stdout.strip() == capability:
            drawn[capability] = dict(np.load(target))
    assert "portable" in drawn, "the portable kernels run everywhere"
    for capability, values in drawn.items():
        for name, tolerance in (
            ("eps32", 2 * NOISE_TOLERANCE[torch.float32]),
            ("eps64", 2 * NOISE_TOLERANCE[torch.float64]),
            ("z", 1e-4),
            ("kl", 1e-2),
        ):
            error = np.abs(values[name] - drawn["portable"][name]).max()
            assert error <= tolerance, f"{name}, {capability} against portable: {error:.3g}"
