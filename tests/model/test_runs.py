"""Run folders are never overwritten; files and checkpoints are whole or not there."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rhovae.checkpoints import AtomicCheckpointIO, random_state, read_checkpoint, set_random_state
from rhovae.config import ConfigError, TrainConfig
from rhovae.files import RunError, write_atomically
from rhovae.runs import Run, new_folder, resume_config


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    folders = [Run.create(TrainConfig(), root=tmp_path).folder.name for _ in range(3)]
    assert folders == ["digits-vanilla-rho-1", "digits-vanilla-rho-2", "digits-vanilla-rho-3"]
    (tmp_path / "x-1").write_text("a file in the way")
    assert new_folder(tmp_path, "x").name == "x-2"


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(RunError, match=r"not empty and a run never overwrites.*--resume"):
        Run.create(TrainConfig(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(RunError, match="not the folder of a run"):
        Run.open(tmp_path)


def test_config_and_environment_stand_beside_the_run(tmp_path: Path) -> None:
    config = TrainConfig(posterior="ar1", seed=5)
    run = Run.create(config, tmp_path / "r")
    run.note_start(config)
    run.note_start(config)
    assert Run.open(tmp_path / "r").config() == config
    starts = json.loads(run.environment_file.read_text())
    assert len(starts) == 2
    assert starts[0]["seed"] == 5
    assert starts[0]["command"] == sys.argv
    assert starts[0]["versions"]["torch"] == torch.__version__


def test_resume_keeps_what_makes_the_run(tmp_path: Path) -> None:
    run = Run.create(TrainConfig(epochs=3), tmp_path / "r")
    assert resume_config(run, {"epochs": 9}).epochs == 9
    assert resume_config(run, {"seed": 0}).epochs == 3
    with pytest.raises(ConfigError, match=r"--latent-dim 5 differs from the 10 that .* was begun with"):
        resume_config(run, {"latent_dim": 5})


def test_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"f cannot be written: disk full; .*before is untouched"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_killed_while_writing_leaves_one_whole_checkpoint(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "last.ckpt"
    script = f"""
import torch
from pathlib import Path
from rhovae.checkpoints import AtomicCheckpointIO
for step in range(10_000):
    checkpoint = {{"step": step, "w": torch.full((1_000_000,), float(step))}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, {str(path)!r})
    print(step, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for delay in (0.003, 0.011, 0.029):
        time.sleep(delay)
        # whatever the writer is at, a reader finds a whole file
        whole = read_checkpoint(path)
        assert (whole["w"] == whole["step"]).all()
    process.kill()
    process.wait()
    whole = read_checkpoint(path)
    assert (whole["w"] == whole["step"]).all()
    AtomicCheckpointIO().save_checkpoint({"step": -1}, path)
    assert read_checkpoint(path)["step"] == -1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_damaged_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(RunError, match=r"last\.ckpt is missing.*--resume"):
        read_checkpoint(path)
    AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(RunError, match=r"last\.ckpt is damaged"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(RunError, match=r"last\.ckpt is damaged"):
        read_checkpoint(path)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.ckpt")
    with pytest.raises(RunError, match="is no checkpoint of a run"):
        read_checkpoint(tmp_path / "x.ckpt", "state_dict")


def test_random_state_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state"

    def draw() -> tuple[float, float, float, float]:
        legacy = np.random  # the generator that user code may still draw on
        return random.random(), legacy.rand(), legacy.randn(), torch.rand(1).item()

    np.random.seed(3)  # noqa: NPY002
    draw()
    AtomicCheckpointIO().save_checkpoint(random_state(), path)
    expected = [draw() for _ in range(3)]
    set_random_state(read_checkpoint(path))
    assert [draw() for _ in range(3)] == expected
