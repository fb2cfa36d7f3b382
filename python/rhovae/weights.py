"""A trained model as one safetensors file that says how to build it, with a model card beside it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rhovae.checkpoints import check_weights, load_weights
from rhovae.config import ConfigError, TrainConfig, make_config
from rhovae.files import RunError, open_regular, shown, write_atomically
from rhovae.footprint import outline
from rhovae.models import VAE, make_model
from rhovae.networks import Trust
from rhovae_ext import __version__

WEIGHTS = "model.safetensors"
CARD = "README.md"

_LONGEST = 1 << 16
_MOST_PIXELS = 1 << 26
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def save_model(model: VAE, config: TrainConfig, result: dict[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` and ``README.md``, the model card, into the folder.

    Args:
        result: the test figures, as :func:`rhovae.comparison.finish` has them.
    """
    write_atomically(folder / WEIGHTS, serialise(model, config))
    write_atomically(folder / CARD, _card(model, config, result).encode())


def serialise(model: VAE, config: TrainConfig) -> bytes:
    """The content of ``model.safetensors``.

    Raises:
        ConfigError: the model has state that the format does not know.
    """
    metadata = {
        "format": "pt",
        "rhovae": __version__,
        "config": json.dumps(asdict(config)),
        "image_shape": json.dumps(model.image_shape),
    }
    seen: set[int] = set()
    state = {}
    try:
        for name, value in model.state_dict().items():
            state[name] = value.detach().cpu().contiguous()
            # tied weights: the format wants each its own, and the model that loads them shares them again
            storage = state[name].untyped_storage().data_ptr()
            if storage in seen:
                state[name] = state[name].clone()
            seen.add(storage)
        return save(state, metadata)
    except (AttributeError, RuntimeError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the state of the model cannot be written as {WEIGHTS} ({error}): let state_dict() of your own "
            "networks hold plain tensors alone"
        ) from error


def model_of(config: TrainConfig, image_shape: Sequence[int]) -> VAE:
    """The model that a config describes, with weights drawn anew."""
    return make_model(
        config.model,
        image_shape,
        config.latent_dim,
        config.posterior,
        hidden=config.hidden,
        backend=config.backend,
        encoder=config.encoder,
        decoder=config.decoder,
        latent_order=config.latent_order,
    )


def load_vae(path: str | Path, *, trust_code: Trust = False) -> VAE:
    """The model in a ``model.safetensors``, or in the folder that holds one, ready to use.

    Args:
        trust_code: import and run the networks of one's own that the file names; or their import paths, to
            run these and no others.

    Raises:
        RunError: the file is missing, damaged, does not fit the model that it describes, or names code.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise RunError(f"{path} does not exist: expected a {WEIGHTS}, or the folder of a run")
    if not file.exists():
        raise RunError(
            f"{file} is missing: a run writes it when it ends; continue one with "
            f"`{shlex.join(['python', '-m', 'rhovae', 'train', '--resume', str(path)])}`"
        )
    open_regular(file).close()
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, or what a type unknown to this torch raises
        raise RunError(f"{file} is damaged and cannot be loaded ({error})") from error
    if "config" not in metadata or "image_shape" not in metadata:
        raise RunError(f"{file} does not say which model it is: it was not written by rhovae")
    config = make_config(_parsed(metadata, "config", file), str(file), trust_code)
    image_shape = _image_shape(metadata, file)
    dtype = next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)
    if dtype not in _DTYPES:
        raise RunError(f"{file} holds weights of type {dtype}: expected {', '.join(map(str, _DTYPES))}")
    try:
        check_fit(config, image_shape, weights, file)
        model = model_of(config, image_shape)
    except (ValueError, ConfigError) as error:
        raise RunError(f"{file}: the model that it describes cannot be built ({error})") from error
    load_weights(model.to(dtype), weights, file)
    check_order(model, file)
    return model.eval()


def _parsed(metadata: Mapping[str, str], name: str, file: Path) -> Any:
    text = metadata[name]
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text):,} characters, at most {_LONGEST:,}")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged: its {name} cannot be read ({error})") from error


def _image_shape(metadata: Mapping[str, str], file: Path) -> tuple[int, ...]:
    shape = _parsed(metadata, "image_shape", file)
    whole = isinstance(shape, list) and all(type(n) is int and 1 <= n <= _MOST_PIXELS for n in shape)
    if not whole or not 1 <= len(shape) <= 4 or math.prod(shape) > _MOST_PIXELS:
        raise RunError(
            f"{file} is damaged: its image_shape must be 1 to 4 positive whole numbers, at most "
            f"{_MOST_PIXELS:,} pixels, got {shown(shape)}"
        )
    return tuple(shape)


def check_fit(
    config: TrainConfig, image_shape: Sequence[int], weights: Mapping[str, Tensor], origin: Path
) -> None:
    """Refuse weights that are not those of the model, before it takes memory.

    The networks of one's own are left to their own code.

    Raises:
        RunError: names or shapes differ; the message says which.
    """
    head = weights.get("head.linear.weight")
    features = head.shape[-1] if isinstance(head, Tensor) and head.dim() == 2 else 1
    model = outline(config, image_shape, features)
    own = tuple(f"{half}." for half in ("encoder", "decoder") if getattr(config, half) is not None)
    known = {name: value for name, value in weights.items() if not (own and name.startswith(own))}
    check_weights(model.state_dict(), known, origin)


def check_order(model: VAE, origin: Path) -> None:
    """Refuse an order of the latents that is none.

    Raises:
        RunError: it is no permutation.
    """
    order = model.latent_order
    if order is not None and sorted(order.tolist()) != list(range(model.latent_dim)):
        raise RunError(
            f"{origin} is damaged: its latent_order is no permutation of 0 .. {model.latent_dim - 1}"
        )


def _card(model: VAE, config: TrainConfig, result: dict[str, Any]) -> str:
    shape = " x ".join(map(str, model.image_shape))
    settings = "\n".join(
        f"    {name}: {value}" for name, value in asdict(config).items() if value is not None
    )
    return f"""\
---
library_name: rhovae
tags: [vae, image-generation]
---

# {config.model} VAE with posterior {config.posterior} on {config.dataset}

Images of {shape} values in [0, 1], {config.latent_dim} latent dimensions, \
{sum(p.numel() for p in model.parameters()):,} weights, trained for {result["epochs"]} epochs.

| test figure, nats an image | |
|---|--:|
| negative ELBO | {result["negative_elbo"]:.2f} ± {result["negative_elbo_se"]:.2f} |
| reconstruction | {result["reconstruction"]:.2f} |
| KL | {result["kl"]:.2f} |
| NLL (IWAE-{result["iwae_samples"]}) | {result["nll"]:.2f} ± {result["nll_se"]:.2f} |

± is the standard error over {result["images"]} images of the {result["split"]} split.

```python
from rhovae.weights import load_vae

model = load_vae("{WEIGHTS}")
images = model.generate(16)
```

    python -m rhovae sample --from FOLDER

Settings:

{settings}

For study: a small generative model of one data set, with no claim beyond the figures above.
"""
