"""The folder of a run: made once, never shared, never overwritten."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rhovae.config import ConfigError, TrainConfig, make_config, read_yaml, write_yaml

_PACKAGES = ("rhovae-ext", "torch", "lightning", "numpy", "scikit-learn", "matplotlib", "triton")


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says what to do."""


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

    def config(self) -> TrainConfig:
        """The settings that the run was made with, or last resumed with."""
        return make_config(read_yaml(self.config_file), str(self.config_file))

    def note_start(self, config: TrainConfig) -> None:
        """Add this process's command and versions to ``environment.json``, and keep what it changes."""
        write_yaml(config, self.config_file)
        starts = read_json(self.environment_file) if self.environment_file.is_file() else []
        starts.append(environment(config.seed))
        write_json(starts, self.environment_file)


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


def resume_config(run: Run, flags: dict[str, Any]) -> TrainConfig:
    """The run's settings with those that may change on the way.

    Raises:
        ConfigError: a flag would make it another run.
    """
    config = run.config()
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


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and let it be made again") from error


def write_json(content: Any, path: Path) -> None:
    """Replace the file as a whole."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file, flush, then take its name: a crash leaves the old content or the new."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    # the new name is itself only on the disk once its folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
