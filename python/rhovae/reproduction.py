"""The rho-VAE paper's experiments as runs over models, posteriors, latent dimensions and seeds.

Every run is one of ``python -m rhovae train`` in a folder of its own; what is finished is never run again,
and what was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rhovae.comparison import finished as run_finished
from rhovae.config import ConfigError, TrainConfig, make_config, read_yaml, write_yaml
from rhovae.files import RunError, shown, write_atomically
from rhovae.networks import Trust
from rhovae.runs import Run
from rhovae.signals import Children

MOST_SEEDS = 10_000


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
    if not file.exists():
        write_atomically(file, yaml.safe_dump(content, sort_keys=False).encode())
        return
    begun = read_yaml(file)
    pairs = [(name, begun.get(name), content[name]) for name in content if name != "settings"]
    old = begun.get("settings")
    if not isinstance(old, dict):
        raise RunError(f"{file} is damaged: it has no settings; give another --out")
    pairs += [(name, old.get(name), value) for name, value in content["settings"].items()]
    for name, was, is_now in pairs:
        if was != is_now:
            raise ConfigError(
                f"{folder} was begun with {name} = {shown(was)}, now it is {is_now}: a report never mixes "
                "settings; give the same, or another --out"
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
    with _append(folder / "lock") as lock:
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
    children = Children()
    with ThreadPoolExecutor(min(processes, max(1, len(waiting)))) as pool, _all_ended(pool, children):
        begun = {pool.submit(_run, children, folder, job, lock): job for job in waiting}
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
    return run_finished(Run(run_folder(folder, job)), job)


@contextmanager
def _all_ended(pool: ThreadPoolExecutor, children: Children) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        children.end()
        raise


def _run(children: Children, folder: Path, job: TrainConfig, lock: int) -> tuple[int, float]:
    path = run_folder(folder, job)
    path.parent.mkdir(exist_ok=True)
    if (path / "config.yaml").exists():
        where = ["--resume", str(path)]
    else:
        settings = path.with_suffix(".yaml")
        write_yaml(job, settings)
        where = ["--config", str(settings), "--out", str(path)]
    # the user named them, or said that the file which did is trusted
    for half in ("encoder", "decoder"):
        where += [f"--{half}", getattr(job, half)] if getattr(job, half) is not None else []
    began = time.perf_counter()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(job.threads)} if job.threads else {})}
    with _append(path.with_suffix(".log")) as log:
        status = children.run(
            [sys.executable, "-m", "rhovae", "train", *where],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            # a run that outlives this process keeps others from starting it a second time
            pass_fds=(lock,),
        )
    return status, time.perf_counter() - began


def _append(path: Path) -> IO[bytes]:
    """A file to write at its end, which is no link.

    Raises:
        RunError: it is one, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        why = "it is a link" if path.is_symlink() else error.strerror
        raise RunError(f"{path} cannot be written: {why}; delete it, or give another --out") from error


def read_plan(folder: Path, trust_code: Trust = False) -> Plan:
    """The plan of a folder.

    Raises:
        RunError: it is missing, damaged, or names code that is not trusted.
    """
    file = folder / "plan.yaml"
    content = read_yaml(file)
    for name, kind in (("models", str), ("posteriors", str), ("latent_dims", int)):
        values = content.get(name)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise RunError(
                f"{file} is damaged: {name} must be a list of {kind.__name__}, got {shown(values)}"
            )
    seeds = content.get("seeds")
    if type(seeds) is not int or not 1 <= seeds <= MOST_SEEDS:
        raise RunError(f"{file} is damaged: seeds must be from 1 to {MOST_SEEDS}, got {shown(seeds)}")
    return Plan(
        tuple(content["models"]),
        tuple(content["posteriors"]),
        tuple(content["latent_dims"]),
        seeds,
        make_config(content.get("settings") or {}, str(file), trust_code),
    )
