"""What a model would take of memory and disk, reckoned before any of it is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rhovae.config import ConfigError, TrainConfig
from rhovae.memory import require, size
from rhovae.models import MODELS, VAE
from rhovae.posteriors import make_posterior

_ITEM = {"64": 8, "bf16-true": 2}
# the rows that are decoded at once without gradients: a validation batch
_WATCHED = 1000
_LOGS = 4 << 20
_SMALLER = "make hidden, latent_dim or batch_size smaller"


def outline(config: TrainConfig, image_shape: Sequence[int], features: int | None = None) -> VAE:
    """The model of a config on the meta device, where weights have shapes and no memory.

    In place of a network of one's own stands one without weights; ``features`` is what its encoder gives.

    Raises:
        ConfigError: its networks do not fit the images, or no machine could hold them.
    """
    try:
        with torch.device("meta"):
            networks, objective = MODELS[config.model](image_shape, config.latent_dim, config.hidden)
            width = networks.features if config.encoder is None else features or 1
            head = make_posterior(config.posterior, width, config.latent_dim)
            encoder = networks.encoder if config.encoder is None else nn.Identity()
            decoder = networks.decoder if config.decoder is None else nn.Identity()
            model = VAE(encoder, head, decoder, image_shape, objective)
            if config.latent_order is not None:
                model.latent_order = torch.empty(config.latent_dim, dtype=torch.long)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:  # more elements than 64 bits count
        raise ConfigError(
            f"a model with hidden {config.hidden} and latent_dim {config.latent_dim} on images "
            f"{tuple(image_shape)} needs more memory than any machine has; make them smaller"
        ) from error
    return model.eval()


def check_samples(samples: int, image_shape: Sequence[int]) -> None:
    """Refuse importance samples without end.

    Raises:
        RunError: those of a single image would not fit into memory.
    """
    pixels = math.prod(image_shape)
    what = f"iwae_samples {samples}: the decoded samples of one image of {pixels} pixels"
    require(4 * samples * pixels, what, "give fewer, such as 500")


def check_training(config: TrainConfig, image_shape: Sequence[int], images: int) -> int:
    """Refuse a model, a batch or samples that memory cannot hold; what one run of it takes of the disk.

    Weights, gradients, Adam's two moments, and a checkpoint of three of them while it is written; what the
    layers give for the rows of a batch, kept for the gradients, once more as gradients and in between.

    Raises:
        RunError: with what it would take, and what there is.
    """
    check_samples(config.iwae_samples, image_shape)
    model = outline(config, image_shape)
    item = _ITEM.get(config.precision, 4)
    weights = item * sum(p.numel() for p in model.parameters())
    layers = _layers(model, config, image_shape)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rows = min(config.batch_size, images)
    moving = item * max(3 * rows * sum(layers), 3 * min(images, max(rows, _WATCHED)) * max(layers))
    if torch.cuda.is_available():
        require(4 * weights + moving // here, "training", _SMALLER, torch.cuda.mem_get_info()[0])
    require(7 * weights * here + moving, f"training a model of {size(weights)} of weights", _SMALLER)
    return 4 * weights + _LOGS


def _layers(model: VAE, config: TrainConfig, image_shape: Sequence[int]) -> list[int]:
    """How many numbers each layer gives for one image."""
    counts = [math.prod(image_shape), config.latent_dim]

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        counts.append(output.numel())

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad(), torch.device("meta"):
        features = torch.empty(1, model.head.linear.in_features)
        if config.encoder is None:
            features = model.encoder(torch.empty(1, *image_shape))
        model.head.linear(features)
        if config.decoder is None:
            model.decoder(torch.empty(1, config.latent_dim))
    return counts
