"""The benchmark measures what it says, and refuses to report a wrong kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rhovae_ext
from bench import memory, report
from bench.__main__ import moved_bytes
from bench.memory import BOTH, FORWARD, Extra
from bench.peers import (
    DIAGONAL,
    KERNEL,
    dense_cholesky,
    diagonal,
    output_gradients,
    paper_loop,
    peers,
    stacked_loop,
)
from bench.report import Result
from bench.timing import Quantiles, interleaved
from bench.verify import refuse_if_wrong

CPU = torch.device("cpu")


def test_correlated_peers_are_the_same_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    mu, eps = torch.randn(2, 5, 9, dtype=torch.float64)
    log_s, rho_logit = 0.3 * torch.randn(2, 5, dtype=torch.float64)
    expected = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, eps=eps, backend="reference")
    for peer in (paper_loop, stacked_loop, dense_cholesky):
        steps = iter(eps.unbind(-1))

        def the_same_noise(like: Tensor, steps: Iterator[Tensor] = steps) -> Tensor:
            return eps if like.shape == mu.shape else next(steps)

        monkeypatch.setattr(torch, "randn_like", the_same_noise)
        for ours, theirs in zip(expected, peer(mu, log_s, rho_logit), strict=True):
            torch.testing.assert_close(theirs, ours)


def test_diagonal_peer_has_the_kl_of_torch() -> None:
    mu, log_var = torch.randn(2, 4, 6, dtype=torch.float64)
    ours = torch.distributions.Normal(mu, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = torch.distributions.kl_divergence(ours, prior).sum(-1)
    torch.testing.assert_close(diagonal(mu, log_var)[1], expected)


def test_every_peer_runs_both_ways() -> None:
    gradients = output_gradients(6, 11, CPU)
    found = peers(6, 11, device=CPU, backend="reference", compiled=False)
    assert found[0].name == KERNEL
    assert {"paper's loop", "dense Cholesky", "copy of mu"} < {peer.name for peer in found}
    for peer in found:
        assert peer.forward()[0].shape == (6, 11)
        if peer.differentiable:
            results = peer.forward_backward(gradients)
            assert [r.shape for r in results[2:]] == [read.shape for read in peer.reads]


def test_moved_bytes_of_the_kernel() -> None:
    peer = peers(8, 16, device=CPU, backend="reference", compiled=False)[0]
    row, matrix = 8 * 4, 8 * 16 * 4
    forward = (matrix + 2 * row) + (matrix + row)  # mu, log_s, rho_logit read; z, kl written
    backward = (
        (matrix + row) + (matrix + 2 * row) + (matrix + 2 * row)
    )  # dz, dkl, the inputs; their gradients
    gradients = output_gradients(8, 16, CPU)
    assert moved_bytes(peer, FORWARD, gradients) == forward
    assert moved_bytes(peer, BOTH, gradients) == forward + backward


def test_extra_bytes_are_those_beyond_the_result() -> None:
    x = torch.randn(1000)
    assert memory.tensors_extra(lambda: (x.clone(),)) == 0
    assert memory.tensors_extra(lambda: (x.clone().add(1).mul(2),)) == pytest.approx(4000, abs=64)


def test_pages_and_tensors_agree() -> None:
    program = """
import json, torch
from bench.memory import pages_extra, tensors_extra
from bench.peers import diagonal
mu, log_var = torch.randn(2, 1024, 2100)
calls = [lambda: (mu.clone(),), lambda: diagonal(mu, log_var)]
print(json.dumps([(tensors_extra(call), pages_extra(call)) for call in calls]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | memory.RETURN_FREED_BLOCKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    copy, eager = json.loads(done.stdout)
    if copy[1] is None:
        pytest.skip("this system does not tell a process's peak size")
    assert copy[0] == 0
    assert copy[1] < 2**20
    assert eager[0] > 2 * 1024 * 2100 * 4
    assert eager[1] == pytest.approx(eager[0], rel=0.05)


def test_freed_memory_is_not_mapped_anew() -> None:
    program = """
import resource, torch
from bench.timing import keep_freed_memory
if keep_freed_memory():
    for _ in range(40):  # the heap takes some turns to settle
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(2**22).fill_(0)  # 4096 pages
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip("this C library does not keep freed memory on request")
    assert int(done.stdout) < 400


def test_quantiles_interpolate() -> None:
    quantiles = Quantiles.of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    assert (quantiles.q20, quantiles.q50, quantiles.q80) == pytest.approx((2.0, 3.5, 5.0))
    assert quantiles.samples == 6


def test_interleaved_alternates_and_reports_a_call() -> None:
    seconds = {"slow": 0.25, "quick": 1e-3}
    names = {id(name): name for name in seconds}
    taken: list[str] = []

    def timer(call: Any, number: int) -> float:
        taken.append(call())
        return number * seconds[call()]

    calls = {name: (lambda key=key: names[key]) for key, name in names.items()}
    times = interleaved(calls, timer, budget=1.0, rounds=8)
    assert {name: t.q50 for name, t in times.items()} == pytest.approx(seconds)
    assert times["slow"].samples == 5
    assert times["quick"].samples == 8
    assert taken[4:14] == ["quick"] * 10  # unmeasured
    assert set(taken[14:16]) == set(seconds)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_if_wrong("reference")
    right = rhovae_ext.ar1_reparam_kl_with_logits

    def wrong(mu: Tensor, log_s: Tensor, rho_logit: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        z, kl = right(mu, log_s, rho_logit, **options)
        return z * (1 + 1e-3), kl

    monkeypatch.setattr(rhovae_ext, "ar1_reparam_kl_with_logits", wrong)
    with pytest.raises(SystemExit, match="No speed is reported while the kernel is wrong"):
        refuse_if_wrong("reference")


def test_reports_are_written_and_never_overwritten(tmp_path: Path) -> None:
    def result(peer: str, rows: int, direction: str, middle: float) -> Result:
        quantiles = Quantiles(0.9 * middle, middle, 1.2 * middle, 9)
        return Result(peer, rows, 10, direction, 1, quantiles, 8.0, Extra(40, None))

    results = [
        result(peer, rows, direction, seconds)
        for rows in (10, 20)
        for direction in (FORWARD, BOTH)
        for peer, seconds in ((KERNEL, 1e-6), (DIAGONAL, 3e-6))
    ]
    machine: dict[str, Any] = {
        "cpu": "Some CPU",
        "cores": 2,
        "instruction_set": "avx2",
        "memory_gib": 8.0,
        "system": "Linux",
        "python": "3.12",
        "torch": "2.13",
        "rhovae_ext": "0.1",
        "load_before": [0.0],
    }
    first = report.write(results, machine, "python -m bench", report.unused_stem(tmp_path, "host"))
    second = report.unused_stem(tmp_path, "host")
    assert [path.name for path in first] == ["host.json", "host.md", "host.png"]
    assert second.name == "host-2"
    record = json.loads(first[0].read_text())
    assert record["results"][0]["ns_per_element"] == pytest.approx(10.0)
    assert record["results"][0]["gigabytes_per_second"] == pytest.approx(0.8)
    table = first[1].read_text()
    assert f"| {DIAGONAL} | 3 | 3 |" in table
    assert "10 (9-12)" in table
    assert "- 10 x 10, 1 thread: forward 10 (9-12) ns per element, 3 times as fast" in table
    assert "Other programs" not in table
    machine["load_before"] = [1.5]
    assert "Other programs" in report.markdown(results, machine, "python -m bench")
    assert first[2].stat().st_size > 10_000
