"""Checkpoints that are whole or not there, and the random state that goes into them."""

from __future__ import annotations

import io
import pickletools
import random
import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from rhovae.files import RunError, open_regular, shown, write_atomically

# all that a run's own checkpoint is made of
_PARTS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch\.storage UntypedStorage"
    r"|torch (\w+Storage|Size|device|u?int\d+|float\d\w*|bfloat16)"
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes, renames: a kill at any moment leaves the old checkpoint or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getbuffer())


def read_checkpoint(path: Path, *parts: str) -> dict[str, Any]:
    """A checkpoint on the CPU, loaded without running code from it.

    Raises:
        RunError: it is missing or damaged, or has not all of these parts.
    """
    if not path.exists():
        raise RunError(
            f"{path} is missing: the run was stopped before its first checkpoint; continue it with "
            f"`{shlex.join(['python', '-m', 'rhovae', 'train', '--resume', str(path.parent.parent)])}`"
        )
    with open_regular(path) as stream:
        why = _damage(stream)
        if why is not None:
            raise RunError(f"{path} is damaged and cannot be loaded: {why}")
        stream.seek(0)
        try:
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever its content makes of the reader; torch's advice is left out
            raise RunError(f"{path} is damaged and cannot be loaded ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or not set(parts) <= checkpoint.keys():
        raise RunError(f"{path} is no checkpoint of a run: it was not written by rhovae")
    return checkpoint


def _damage(stream: BinaryIO) -> str | None:
    """Why a file cannot be a whole checkpoint, seen without taking memory for what it announces."""
    length = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                return "its parts are compressed, and those of a checkpoint never are"
            if sum(e.file_size for e in entries) > length:
                return "its parts are announced larger than the file"
            described = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(described) != 1:
                return "it is no checkpoint that torch has written"
            for opcode, argument, _ in pickletools.genops(archive.read(described[0])):
                if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                    return f"it holds what no checkpoint does ({opcode.name})"
                if opcode.name == "GLOBAL" and not _PARTS.fullmatch(str(argument)):
                    return f"it names {shown(argument)}, which no checkpoint does"
    except Exception as error:  # a zip reader raises a dozen kinds of them
        return f"it is empty, cut off or no checkpoint ({type(error).__name__})"
    return None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Put the weights into the model.

    Raises:
        RunError: names or shapes differ; the message says which.
    """
    check_weights(model.state_dict(), weights, origin)
    model.load_state_dict(dict(weights))


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: Path) -> None:
    """Refuse weights that are not those of a model with the state ``own``.

    Raises:
        RunError: names, shapes or kinds differ; the message says which.
    """
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise RunError(f"{origin} is damaged: not all of its weights are tensors")
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not in the model" for name in weights if name not in own]
    differences += [
        f"{name} is {tuple(weights[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    differences += [
        f"{name} is {weights[name].dtype} where the model has {value.dtype}"
        for name, value in own.items()
        if name in weights and _kind(weights[name]) != _kind(value)
    ]
    if differences:
        listed = "; ".join(text[:120] for text in differences[:8]) + ("; ..." if len(differences) > 8 else "")
        raise RunError(
            f"{origin} does not fit the model that its settings describe ({len(differences)} differences): "
            f"{listed}. Load it with the settings that it was written with"
        )


def _kind(value: Tensor) -> tuple[object, ...]:
    return value.is_floating_point(), value.is_complex(), value.layout


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


def check_random_state(state: dict[str, Any]) -> None:
    """Raise whatever :func:`set_random_state` would, with the generators left as they are."""
    random.Random().setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    # NumPy itself believes any position
    if keys.shape != (624,) or not 0 <= position <= 624:
        raise ValueError("no state of a generator")
    np.random.RandomState().set_state((name, keys.numpy(), position, has_gauss, cached))
    torch.Generator().set_state(state["torch"])
    assert all(isinstance(s, Tensor) for s in state["cuda"])


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to a state from :func:`random_state`."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
