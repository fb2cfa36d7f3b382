"""Checkpoints that are whole or not there, and the random state that goes into them."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from rhovae.runs import RunError, write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes, renames: a kill at any moment leaves the old checkpoint or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())


def read_checkpoint(path: Path, *parts: str) -> dict[str, Any]:
    """A checkpoint on the CPU, loaded without running code from it.

    Raises:
        RunError: it is missing or damaged, or has not all of these parts.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: the run was stopped before its first checkpoint; continue it with "
            f"`python -m rhovae train --resume {path.parent.parent}`"
        ) from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise RunError(f"{path} is damaged and cannot be loaded ({error})") from error
    if not isinstance(checkpoint, dict) or not set(parts) <= checkpoint.keys():
        raise RunError(f"{path} is no checkpoint of a run: it was not written by rhovae")
    return checkpoint


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Put the weights into the model.

    Raises:
        RunError: names or shapes differ; the message says which.
    """
    own = model.state_dict()
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not in the model" for name in weights if name not in own]
    differences += [
        f"{name} is {tuple(weights[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:8]) + ("; ..." if len(differences) > 8 else "")
        raise RunError(
            f"{origin} does not fit the model that its settings describe ({len(differences)} differences): "
            f"{shown}. Load it with the settings that it was written with"
        )
    model.load_state_dict(dict(weights))


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's default generators, in types a safe load allows."""
    # user code may draw on the legacy generator, so that it is part of the state
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.tensor(keys), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to a state from :func:`random_state`."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
