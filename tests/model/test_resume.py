"""A run that was killed and resumed reaches, bit for bit, the weights of one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rhovae.checkpoints import read_checkpoint
from rhovae.config import TrainConfig
from rhovae.data import load_dataset
from rhovae.runs import Run
from rhovae.training import VAETask, fit, read_history

# 12 steps an epoch
CONFIG = TrainConfig(epochs=3, hidden=16, latent_dim=4, posterior="ar1", seed=11)

# Kills itself with SIGKILL; every step also draws on the three global generators, as a user's model may.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from rhovae import runs, training
from rhovae.config import make_config
from rhovae.data import load_dataset
from test_resume import restless

kill_step, kill_write = {kill_step}, {kill_write}
config = make_config({settings!r}, "test")
step, fsync, writes = restless(training.VAETask.training_step), os.fsync, 0

def training_step(self, batch, index):
    if self.global_step == kill_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)

def killing_fsync(descriptor):
    global writes
    if "/.last.ckpt." in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        writes += 1
        if writes == kill_write:
            os.ftruncate(descriptor, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    return fsync(descriptor)

training.VAETask.training_step = training_step
os.fsync = killing_fsync
run = runs.Run.create(config, Path({folder!r}))
training.fit(run, config, load_dataset("digits"))
"""


def restless(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A training step that draws on Python's, NumPy's and torch's default generators."""

    def wrapped(self: Any, batch: Any, index: int) -> Tensor:
        loss = step(self, batch, index)
        legacy = np.random  # what user code may still draw on
        return loss * (0.5 + random.random() + float(legacy.rand()) + torch.rand(()))

    return wrapped


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, float]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(VAETask, "training_step", restless(VAETask.training_step))
    run = Run.create(CONFIG, tmp_path_factory.mktemp("whole") / "run")
    fit(run, CONFIG, load_dataset("digits"))
    patch.undo()
    torch.set_num_threads(threads)
    return read_checkpoint(run.checkpoint), read_history(run.history_file)


@pytest.mark.parametrize(
    ("every", "kill_step", "kill_write", "resumes_from"),
    [
        pytest.param(0, 17, 0, 12, id="mid-epoch, from the last epoch"),
        pytest.param(5, 18, 0, 15, id="mid-epoch, from a step"),
        pytest.param(0, 5, 0, 0, id="before the first checkpoint"),
        pytest.param(0, -1, 2, 12, id="while writing a checkpoint"),
    ],
)
def test_killed_and_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_python: Callable[..., Any],
    uninterrupted: tuple[dict[str, Any], list[dict[str, float]]],
    every: int,
    kill_step: int,
    kill_write: int,
    resumes_from: int,
) -> None:
    whole, history = uninterrupted
    folder = tmp_path / "run"
    settings = {
        "epochs": 3,
        "hidden": 16,
        "latent_dim": 4,
        "posterior": "ar1",
        "seed": 11,
        "checkpoint_every": every,
    }
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        kill_step=kill_step,
        kill_write=kill_write,
        settings=settings,
        folder=str(folder),
    )
    killed = run_python("-c", script)
    assert killed.returncode == -9, killed.stderr
    run = Run.open(folder)
    if resumes_from:
        assert read_checkpoint(run.checkpoint)["global_step"] == resumes_from
    else:
        assert not run.checkpoint.exists()

    monkeypatch.setattr(VAETask, "training_step", restless(VAETask.training_step))
    fit(run, run.config(), load_dataset("digits"), resume=True)

    resumed = read_checkpoint(run.checkpoint)
    assert resumed["global_step"] == whole["global_step"] == 36
    assert_same(resumed["state_dict"], whole["state_dict"])
    assert_same(resumed["optimizer_states"], whole["optimizer_states"])
    assert_same(resumed["rhovae"]["random"], whole["rhovae"]["random"])
    for mine, theirs in zip(read_history(run.history_file), history, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, whatever is nested in it."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_resume_of_a_finished_run_trains_on_to_more_epochs(tmp_path: Path) -> None:
    data = load_dataset("digits")
    short = CONFIG.replace(epochs=1)
    run = Run.create(short, tmp_path / "a")
    fit(run, short, data)
    weights = read_checkpoint(run.checkpoint)["state_dict"]
    fit(run, short, data, resume=True)
    assert_same(read_checkpoint(run.checkpoint)["state_dict"], weights)
    fit(run, CONFIG.replace(epochs=2), data, resume=True)

    straight = Run.create(CONFIG.replace(epochs=2), tmp_path / "b")
    fit(straight, CONFIG.replace(epochs=2), data)
    assert_same(
        read_checkpoint(run.checkpoint)["state_dict"], read_checkpoint(straight.checkpoint)["state_dict"]
    )
    assert [row["epoch"] for row in read_history(run.history_file)] == [1, 2]


def test_seed_decides_everything(tmp_path: Path) -> None:
    data = load_dataset("digits")

    def weights(name: str, seed: int) -> dict[str, Tensor]:
        config = CONFIG.replace(epochs=1, seed=seed)
        torch.rand(7)  # what was drawn before must not matter
        run = Run.create(config, tmp_path / name)
        fit(run, config, data)
        state: dict[str, Tensor] = read_checkpoint(run.checkpoint)["state_dict"]
        return state

    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert_same(first, again)
    assert not torch.equal(first["model.head.linear.weight"], other["model.head.linear.weight"])
