"""The folder of a run: made once, never shared, never overwritten."""

from __future__ import annotations

import itertools
import os
import platform
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from rhovae.config import ConfigError, TrainConfig, make_config, read_yaml, trusted, write_yaml
from rhovae.files import RunError, check_writable, read_json, write_json
from rhovae.networks import Trust

_PACKAGES = ("rhovae-ext", "torch", "lightning", "numpy", "scikit-learn", "matplotlib", "triton")


class Run:
    """Where a run keeps its settings, checkpoints, logs, figures and pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file = folder / "config.yaml"
        self.environment_file = folder / "environment.json"
        self.checkpoint = folder / "checkpoints" / "last.ckpt"
        self.history_file = folder / "history.csv"
        self.metrics_file = folder / "metrics.json"
        self.tensorboard = folder / "tensorboard"

    @classmethod
    def create(cls, config: TrainConfig, out: Path | None = None, root: Path = Path("runs")) -> Run:
        """A new folder: ``out``, which must be new or empty, or the next free number under ``root``.

        Raises:
            RunError: ``out`` holds something already.
        """
        if out is not None:
            _remove_unbegun(out)
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise RunError(
                    f"{out} is not empty and a run never overwrites another: continue it with "
                    f"`--resume {out}`, or give another --out"
                )
            folder = out
        else:
            folder = new_folder(root, f"{config.dataset}-{config.model}-{config.posterior}")
        run = cls(folder)
        try:
            run.checkpoint.parent.mkdir()
        except FileExistsError:
            raise RunError(f"{folder} was taken by another run just now; give another --out") from None
        write_yaml(config, run.config_file)
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run.

        Raises:
            RunError: the folder holds no run.
        """
        run = cls(folder)
        if not run.config_file.is_file():
            raise RunError(f"{folder} is not the folder of a run: it has no config.yaml")
        return run

    def config(self, trust_code: Trust = False) -> TrainConfig:
        """The settings that the run was made with, or last resumed with.

        Raises:
            RunError: they cannot be read, or name code that is not trusted.
        """
        settings = read_yaml(self.config_file)
        if not settings:
            raise RunError(f"{self.config_file} is damaged: it is empty")
        return make_config(settings, str(self.config_file), trust_code)

    def check_folder(self) -> None:
        """Refuse a folder in which a run cannot write, or would write elsewhere.

        Raises:
            RunError: with the reason.
        """
        for part in (self.checkpoint.parent, self.tensorboard):
            if part.is_symlink():
                raise RunError(
                    f"{part} is a link, and a run writes into its own folder alone; move here "
                    "what it leads to"
                )
            if part.exists() and not part.is_dir():
                raise RunError(f"{part} is no folder; delete it")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, self.checkpoint.parent):
            check_writable(folder)

    def note_start(self, config: TrainConfig) -> None:
        """Add this process's command and versions to ``environment.json``, and keep what it changes."""
        self.check_folder()
        starts = read_json(self.environment_file) if self.environment_file.exists() else []
        if not isinstance(starts, list):
            raise RunError(
                f"{self.environment_file} holds no list of starts; delete it and let it be made again"
            )
        starts.append(environment(config.seed))
        write_yaml(config, self.config_file)
        write_json(starts, self.environment_file)


def resume_command(folder: Path, config: TrainConfig) -> list[str]:
    """What goes on with a run. It names the networks of one's own, for the run's files may not."""
    command = ["python", "-m", "rhovae", "train", "--resume", str(folder)]
    for half in ("encoder", "decoder"):
        path = getattr(config, half)
        command += [] if path is None else [f"--{half}", path]
    return command


def _remove_unbegun(folder: Path) -> None:
    """Delete what :meth:`Run.create` leaves, stopped before there are settings, and nothing else."""
    with suppress(OSError):
        for left in folder.glob(".config.yaml.*.part"):
            left.unlink()
        (folder / "checkpoints").rmdir()


def new_folder(root: Path, name: str) -> Path:
    """Make ``root/name-N`` with the first number that is free, also against other processes."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / f"{name}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def free_name(path: Path) -> Path:
    """This path, or where something has it, ``name-2`` and so on."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], names) if not p.exists())


def resume_config(run: Run, flags: dict[str, Any], trust_code: bool = False) -> TrainConfig:
    """The run's settings with those that may change on the way.

    Raises:
        ConfigError: a flag would make it another run.
    """
    config = run.config(trusted(flags, trust_code))
    free = {"epochs", "checkpoint_every", "iwae_samples", "data_dir", "threads"}
    changed = [name for name, value in flags.items() if name not in free and value != getattr(config, name)]
    if changed:
        flag = "--" + changed[0].replace("_", "-")
        raise ConfigError(
            f"{flag} {flags[changed[0]]} differs from the {getattr(config, changed[0])} that {run.folder} "
            f"was begun with; only {', '.join(sorted(free))} may change on --resume: begin a new run for "
            "the rest"
        )
    return config.replace(**flags)


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine and command, as far as they may bear on a result."""
    import torch

    import rhovae_ext

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "backends": rhovae_ext.available_backends(),
        "versions": versions,
    }
