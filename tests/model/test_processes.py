"""Two processes reach what one does: same noise, same order of the data, same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.runs import Run
from rhovae.training import read_history

# float64 leaves only the rounding of sums in another order; 100 does not divide 1437
SETTINGS = [
    "--precision",
    "64",
    "--hidden",
    "16",
    "--latent-dim",
    "4",
    "--batch-size",
    "100",
    "--posterior",
    "ar1",
]


def test_two_processes_equal_one(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rhovae", "train"]
    done = run_python(*launch, *SETTINGS, "--epochs", "1", "--out", str(two))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == 1
    assert main(["train", *SETTINGS, "--epochs", "1", "--out", str(one)]) == 0

    a, b = (read_checkpoint(Run.open(folder).checkpoint)["state_dict"] for folder in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-9)
    history_a, history_b = (read_history(Run.open(folder).history_file)[0] for folder in (one, two))
    for name in set(history_a) - {"seconds"}:
        assert abs(history_a[name] - history_b[name]) < 1e-9
