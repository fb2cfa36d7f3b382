"""A trained model as one safetensors file that says how to build it, with a model card beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rhovae.checkpoints import load_weights
from rhovae.config import ConfigError, TrainConfig, make_config
from rhovae.models import VAE, make_model
from rhovae.runs import RunError, write_atomically
from rhovae_ext import __version__

WEIGHTS = "model.safetensors"
CARD = "README.md"


def save_model(model: VAE, config: TrainConfig, result: dict[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` and ``README.md``, the model card, into the folder.

    Args:
        result: the test figures, as :func:`rhovae.comparison.finish` has them.
    """
    metadata = {
        "format": "pt",
        "rhovae": __version__,
        "config": json.dumps(asdict(config)),
        "image_shape": json.dumps(model.image_shape),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state, metadata))
    write_atomically(folder / CARD, _card(model, config, result).encode())


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


def load_vae(path: str | Path) -> VAE:
    """The model in a ``model.safetensors``, or in the folder that holds one, ready to use.

    Raises:
        RunError: the file is missing, damaged, or does not fit the model that it describes.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise RunError(f"{path} does not exist: expected a {WEIGHTS}, or the folder of a run")
    if not file.is_file():
        raise RunError(
            f"{file} is missing: a run writes it when it ends; continue one with "
            f"`python -m rhovae train --resume {path}`"
        )
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{file} is damaged and cannot be loaded ({error})") from error
    if "config" not in metadata or "image_shape" not in metadata:
        raise RunError(f"{file} does not say which model it is: it was not written by rhovae")
    try:
        config = make_config(json.loads(metadata["config"]), str(file))
        model = model_of(config, json.loads(metadata["image_shape"]))
    except (ValueError, ConfigError) as error:
        raise RunError(f"{file}: the model that it describes cannot be built ({error})") from error
    model.to(next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32))
    load_weights(model, weights, file)
    return model.eval()


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
