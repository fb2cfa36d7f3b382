"""The rho-VAE paper's experiments as runs over models, posteriors, latent dimensions and seeds.

Every run is one of ``python -m rhovae train`` in a folder of its own; what is finished is never run again,
and what was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rhovae.config import ConfigError, TrainConfig, make_config, read_yaml, write_yaml
from rhovae.runs import Run, RunError, read_json, write_atomically


@dataclass(frozen=True)
class Plan:
    """What a report is made of: all combinations, with everything else equal."""

    models: tuple[str, ...]
    posteriors: tuple[str, ...]
    latent_dims: tuple[int, ...]
    seeds: int
    settings: TrainConfig

    def jobs(self) -> list[TrainConfig]:
        """The settings of every run; the seeds outermost, so that an early report has every model."""
        return [
            self.settings.replace(model=model, posterior=posterior, latent_dim=d, seed=seed)
            for seed in range(self.seeds)
            for model in self.models
            for d in self.latent_dims
            for posterior in self.posteriors
        ]


def run_folder(folder: Path, job: TrainConfig) -> Path:
    """Where a run of a report lives."""
    return folder / "runs" / f"{job.model}-d{job.latent_dim}-{job.posterior}-seed{job.seed}"


def keep_plan(plan: Plan, folder: Path) -> None:
    """Write the plan into the folder, or check that it is the one that is there.

    Raises:
        ConfigError: the folder was begun with other settings; the message names the first that differs.
    """
    import yaml

    file = folder / "plan.yaml"
    content: dict[str, Any] = {**asdict(plan), "settings": asdict(plan.settings)}
    content = {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}
    if not file.is_file():
        write_atomically(file, yaml.safe_dump(content, sort_keys=False).encode())
        return
    begun = read_yaml(file)
    pairs = [(name, begun.get(name), content[name]) for name in content if name != "settings"]
    old = begun.get("settings", {})
    pairs += [(name, old.get(name), value) for name, value in content["settings"].items()]
    for name, was, is_now in pairs:
        if was != is_now:
            raise ConfigError(
                f"{folder} was begun with {name} = {was}, now it is {is_now}: a report never mixes settings; "
                "give the same, or another --out"
            )


def refuse_foreign(folder: Path) -> None:
    """Leave a folder alone that is not a report's.

    Raises:
        RunError: it holds something, and no plan.
    """
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if found - {"lock"} and "plan.yaml" not in found:
        raise RunError(f"{folder} is not empty and holds no plan.yaml; give another --out")


@contextmanager
def sole_user(folder: Path) -> Iterator[int]:
    """Hold the folder against a second ``reproduce``, until all processes with this lock have ended.

    Raises:
        RunError: another process has it.
    """
    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is at work in {folder}; wait for it, or give another --out"
            raise RunError(message) from None
        yield lock.fileno()


def run_all(plan: Plan, folder: Path, processes: int, lock: int, say: Callable[[str], None]) -> None:
    """Train what is not finished, ``processes`` runs at a time, each of them holding the lock.

    Raises:
        RunError: a run failed; the others are finished first, and the message has the place of its log.
    """
    waiting = [job for job in plan.jobs() if not finished(folder, job)]
    total = len(plan.jobs())
    say(f"{total} runs, {total - len(waiting)} of them finished already; {processes} at a time")
    failed: list[Path] = []
    with ThreadPoolExecutor(processes) as pool, _nothing_new_when_stopped(pool):
        begun = {pool.submit(_run, folder, job, lock): job for job in waiting}
        for done, future in enumerate(as_completed(begun), start=total - len(waiting) + 1):
            path = run_folder(folder, begun[future])
            status, seconds = future.result()
            if status:
                failed.append(path)
            word = "FAILED" if status else "done"
            say(f"[{done}/{total}] {path.name}: {word}, {seconds:.0f} s")
    if failed:
        raise RunError(
            f"{len(failed)} of {total} runs failed, the first with the log {failed[0].with_suffix('.log')}; "
            "the same command tries them again and leaves the finished ones alone"
        )


def finished(folder: Path, job: TrainConfig) -> bool:
    """Whether a run has all that a report reads.

    Raises:
        ConfigError: its folder holds a run with other settings.
    """
    path = run_folder(folder, job)
    if not (path / "config.yaml").is_file():
        return False
    config = Run.open(path).config()
    if config != job:
        have, want = asdict(config), asdict(job)
        name = next(name for name in want if have[name] != want[name])
        raise ConfigError(
            f"{path} holds a run with {name} = {have[name]}, its report needs {want[name]}: a report never "
            "mixes settings; move that run away, or give another --out"
        )
    metrics = Run(path).metrics_file
    if not metrics.is_file():
        return False
    # a run that was resumed with other settings, and stopped again, still has the figures of before
    done = read_json(metrics)
    return (done["epochs"], done["iwae_samples"]) == (job.epochs, job.iwae_samples)


@contextmanager
def _nothing_new_when_stopped(pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _run(folder: Path, job: TrainConfig, lock: int) -> tuple[int, float]:
    path = run_folder(folder, job)
    path.parent.mkdir(exist_ok=True)
    if (path / "config.yaml").is_file():
        where = ["--resume", str(path)]
    else:
        # stopped before it had settings: there is nothing in it
        shutil.rmtree(path, ignore_errors=True)
        settings = path.with_suffix(".yaml")
        write_yaml(job, settings)
        where = ["--config", str(settings), "--out", str(path)]
    began = time.perf_counter()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(job.threads)} if job.threads else {})}
    with path.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "rhovae", "train", *where]
        done = subprocess.run(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            # a run that outlives this process keeps others from starting it a second time
            pass_fds=(lock,),
        )
    return done.returncode, time.perf_counter() - began


def read_plan(folder: Path) -> Plan:
    """The plan of a folder."""
    content = read_yaml(folder / "plan.yaml")
    return Plan(
        tuple(content["models"]),
        tuple(content["posteriors"]),
        tuple(content["latent_dims"]),
        content["seeds"],
        make_config(content["settings"], str(folder / "plan.yaml")),
    )
